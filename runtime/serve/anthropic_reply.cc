#include "runtime/serve/anthropic_reply.h"

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/engine/defaults.h"
#include "runtime/serve/http_errors.h"
#include "runtime/text/reply_parser.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;
using Kind = ReplyEvent::Kind;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// A message's content, block by block; in streams also as events.
class MessagesReply final : public HttpReply {
 public:
  MessagesReply(Engine& engine, const ReplySource& source, const OpenAiRequest& request)
      : engine_(engine),
        model_(source.model),
        stream_(request.stream),
        prompt_tokens_(static_cast<int64_t>(request.requests[0].prompt.size())),
        parser_(request.start, request.tools),
        id_(absl::StrFormat("%016x", FreshSeed())) {}

  ~MessagesReply() override {
    if (output_ != nullptr && !finished_) engine_.Cancel(output_->id());
  }

  Status Submit(OpenAiRequest request, const std::function<void()>& wake) {
    LOCKSTEP_CHECK(request.requests.size() == 1);
    LOCKSTEP_ASSIGN_OR_RETURN(output_, engine_.Submit(std::move(request.requests[0])));
    output_->SetNotify(wake);
    return OkStatus();
  }

  std::optional<HttpHead> Head() override {
    if (stream_) {
      return HttpHead{.fields = {{"Content-Type", "text/event-stream"},
                                 {"Cache-Control", "no-cache"},
                                 {"X-Accel-Buffering", "no"}}};
    }
    Gather();
    if (!finished_) return std::nullopt;
    HttpHead head{.fields = {{"Content-Type", "application/json"}, {"Cache-Control", "no-store"}}};
    if (!error_.ok()) head.status = HttpStatusOf(error_);
    out_ = error_.ok() ? Dump(Message()) : ErrorText(ErrorShape::kAnthropic, error_);
    head.body_bytes = out_.size();
    return head;
  }

  HttpPart Next() override {
    if (!stream_) return {out_, true};
    out_.clear();
    if (!begun_) {
      begun_ = true;
      AddEvent("message_start", {{"message", Message()}});
      AddEvent("ping", Json::object());
    }
    Gather();
    if (finished_) End();
    return {out_, finished_};
  }

  std::string_view Sign() override {
    return stream_ ? "event: ping\ndata: {\"type\": \"ping\"}\n\n" : "";
  }

 private:
  void AddEvent(const char* type, const Json& members) {
    if (!stream_) return;
    Json event = {{"type", type}};
    event.update(members);
    out_ += absl::StrFormat("event: %s\ndata: %s\n\n", type, Dump(event));
  }

  void Gather() {
    if (finished_) return;
    const OutputDelta delta = output_->Take();
    for (const ReplyEvent& event : parser_.Push(delta.text)) Add(event);
    if (!delta.finished) return;
    for (const ReplyEvent& event : parser_.Finish()) Add(event);
    CloseBlock();
    finished_ = true;
    const Summary& summary = output_->summary();
    if (summary.reason != FinishReason::kStop && summary.reason != FinishReason::kLength)
      error_ = summary.error.ok() ? absl::CancelledError("cancelled") : summary.error;
  }

  void Add(const ReplyEvent& event) {
    if (event.kind == Kind::kToolCall) {
      const Json input = Json::parse(event.arguments.Dump(), nullptr, false);
      OpenBlock({{"type", "tool_use"},
                 {"id", absl::StrFormat("toolu_%s_%d", id_, calls_++)},
                 {"name", event.name},
                 {"input", Json::object()}});
      content_.back()["input"] = input.is_object() ? input : Json::object();
      AddDelta({{"type", "input_json_delta"}, {"partial_json", Dump(content_.back()["input"])}});
      return CloseBlock();
    }
    const bool thinking = event.kind == Kind::kReasoning;
    const char* const type = thinking ? "thinking" : "text";
    if (!open_ || content_.back()["type"] != type) {
      Json block = {{"type", type}, {type, ""}};
      if (thinking) block["signature"] = "";
      OpenBlock(std::move(block));
    }
    std::string& text = content_.back()[type].get_ref<std::string&>();
    text += event.text;
    AddDelta({{"type", thinking ? "thinking_delta" : "text_delta"}, {type, event.text}});
  }

  void OpenBlock(Json block) {
    CloseBlock();
    AddEvent("content_block_start", {{"index", content_.size()}, {"content_block", block}});
    content_.push_back(std::move(block));
    open_ = true;
  }

  void AddDelta(Json delta) {
    AddEvent("content_block_delta", {{"index", content_.size() - 1}, {"delta", std::move(delta)}});
  }

  void CloseBlock() {
    if (!open_) return;
    open_ = false;
    if (content_.back()["type"] == "thinking") {
      // Clients give thinking back with what signed it. Nobody checks it here.
      content_.back()["signature"] = "unsigned";
      AddDelta({{"type", "signature_delta"}, {"signature", "unsigned"}});
    }
    AddEvent("content_block_stop", {{"index", content_.size() - 1}});
  }

  void End() {
    if (!error_.ok()) {
      out_ += "event: error\ndata: " + ErrorText(ErrorShape::kAnthropic, error_) + "\n\n";
      return;
    }
    AddEvent("message_delta", {{"delta", Stop()}, {"usage", Usage()}});
    AddEvent("message_stop", Json::object());
  }

  Json Stop() const {
    if (!finished_) return {{"stop_reason", nullptr}, {"stop_sequence", nullptr}};
    const Summary& summary = output_->summary();
    const char* reason = "end_turn";
    if (calls_ > 0) reason = "tool_use";
    if (!summary.stop_text.empty()) reason = "stop_sequence";
    if (summary.reason == FinishReason::kLength) reason = "max_tokens";
    return {{"stop_reason", reason},
            {"stop_sequence", summary.stop_text.empty() ? Json() : Json(summary.stop_text)}};
  }

  Json Usage() const {
    const struct Usage usage =
        finished_ ? output_->summary().usage : lockstep::Usage{.prompt_tokens = prompt_tokens_};
    return {{"input_tokens", usage.prompt_tokens - usage.cached_tokens},
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", usage.cached_tokens},
            {"output_tokens", usage.completion_tokens}};
  }

  Json Message() const {
    Json message = {{"id", "msg_" + id_},
                    {"type", "message"},
                    {"role", "assistant"},
                    {"model", model_},
                    {"content", content_}};
    message.update(Stop());
    message["usage"] = Usage();
    return message;
  }

  Engine& engine_;
  const std::string model_;
  const bool stream_;
  const int64_t prompt_tokens_;
  ReplyParser parser_;
  const std::string id_;
  std::shared_ptr<OutputStream> output_;
  Json content_ = Json::array();
  bool open_ = false;  // the last block may grow
  int calls_ = 0;
  bool begun_ = false;
  bool finished_ = false;
  Status error_;
  std::string out_;
};

}  // namespace

StatusOr<std::unique_ptr<HttpReply>> StartMessagesReply(Engine& engine, const ReplySource& source,
                                                        OpenAiRequest request,
                                                        const std::function<void()>& wake) {
  auto reply = std::make_unique<MessagesReply>(engine, source, request);
  LOCKSTEP_RETURN_IF_ERROR(reply->Submit(std::move(request), wake));
  return StatusOr<std::unique_ptr<HttpReply>>(std::move(reply));
}

}  // namespace lockstep
