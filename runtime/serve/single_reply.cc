#include "runtime/serve/single_reply.h"

#include <utility>

#include "runtime/base/check.h"

namespace lockstep {

SingleReply::SingleReply(Engine& engine, ErrorShape shape, const Tokenizer& tokenizer,
                         const OpenAiRequest& request)
    : engine_(engine),
      shape_(shape),
      stream_(request.stream),
      prompt_tokens_(static_cast<int64_t>(request.requests[0].prompt.size())),
      reasoning_(request.start, tokenizer),
      parser_(request.start, request.tools) {}

SingleReply::~SingleReply() {
  if (output_ != nullptr && !finished_) engine_.Cancel(output_->id());
}

Status SingleReply::Submit(OpenAiRequest request, const std::function<void()>& wake) {
  LOCKSTEP_CHECK(request.requests.size() == 1);
  LOCKSTEP_ASSIGN_OR_RETURN(output_, engine_.Submit(std::move(request.requests[0])));
  output_->SetNotify(wake);
  return OkStatus();
}

std::optional<HttpHead> SingleReply::Head() {
  if (stream_) {
    return HttpHead{.fields = {{"Content-Type", "text/event-stream"},
                               {"Cache-Control", "no-store"},
                               {"X-Accel-Buffering", "no"}}};
  }
  Gather();
  if (!finished_) return std::nullopt;
  HttpHead head{.fields = {{"Content-Type", "application/json"}, {"Cache-Control", "no-store"}}};
  if (!error_.ok()) head.status = HttpStatusOf(error_);
  out_ = error_.ok() ? Whole() : ErrorText(shape_, error_);
  head.body_bytes = out_.size();
  return head;
}

HttpPart SingleReply::Next() {
  if (!stream_) return {out_, true};
  out_.clear();
  if (!std::exchange(begun_, true)) Begin();
  Gather();
  if (finished_) error_.ok() ? End() : Fail(error_);
  return {out_, finished_};
}

void SingleReply::Gather() {
  if (finished_) return;
  const OutputDelta delta = output_->Take();
  reasoning_.Add(delta.ids);
  for (const ReplyEvent& event : parser_.Push(delta.text)) Add(event);
  if (!delta.finished) return;
  for (const ReplyEvent& event : parser_.Finish()) Add(event);
  finished_ = true;
  if (summary().reason != FinishReason::kStop && summary().reason != FinishReason::kLength)
    error_ = summary().error.ok() ? absl::CancelledError("cancelled") : summary().error;
  if (error_.ok()) Close();
}

void SingleReply::AddEvent(std::string_view type, std::string_view data) {
  if (stream_) out_ += absl::StrFormat("event: %s\ndata: %s\n\n", type, data);
}

Usage SingleReply::usage() const {
  return finished_ ? summary().usage : Usage{.prompt_tokens = prompt_tokens_};
}

}  // namespace lockstep
