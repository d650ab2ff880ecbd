// One streaming gRPC call: from the engine's deltas to responses, as fast as its client takes them.
// For grpc_server.cc alone.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lockstep/v1/inference.pb.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/engine/engine.h"
#include "runtime/serve/call.h"
#include "runtime/serve/convert.h"
#include "runtime/serve/http_errors.h"
#include "runtime/text/reply_parser.h"

namespace lockstep {

// A status travels in the trailers, and clients refuse trailers of more than 8 KiB: a message may
// quote what the request said, so it is cut.
inline constexpr size_t kStatusMessageBytes = 1024;

inline grpc::Status ToGrpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message = MessageOf(status);
  if (message.size() > kStatusMessageBytes) {
    size_t end = kStatusMessageBytes;
    while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xC0) == 0x80) --end;  // UTF-8
    message = message.substr(0, end) + " ...";
  }
  // To gRPC that would be a prompt that fits later.
  if (status.code() == kContextExceeded)
    return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, message);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

// Ids of one response: a reader that was slow gets several messages instead of one beyond its size
// limit.
inline constexpr size_t kIdsPerResponse = 256;

inline std::string_view Metadata(const grpc::CallbackServerContext& context, const char* name) {
  const auto found = context.client_metadata().find(name);
  if (found == context.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

inline std::string_view KeyOf(const grpc::CallbackServerContext& context) {
  return KeyOf(Metadata(context, "authorization"), Metadata(context, "x-api-key"));
}

// Ends with OK or UNAUTHENTICATED.
inline Status CheckKey(const Call& call, const grpc::CallbackServerContext& context) {
  if (call.known()) return OkStatus();
  return MakeError(ErrorKind::kRequest, absl::StatusCode::kUnauthenticated,
                   KeyOf(context).empty()
                       ? "an API key is needed: metadata authorization: Bearer KEY"
                       : "this API key is not known here");
}

// Tells the log and the client how the call ended; before it ends.
inline grpc::Status EndCall(Call& call, grpc::CallbackServerContext* context,
                            const Status& status) {
  call.SetStatus({"status", absl::StatusCodeToString(status.code())});
  if (const int64_t seconds = RetryAfter(status); seconds > 0)
    context->AddTrailingMetadata("retry-after", std::to_string(seconds));
  return ToGrpc(status);
}

inline Deadline DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto deadline = context.deadline();
  if (deadline == std::chrono::system_clock::time_point::max()) return Deadline();
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
      deadline - std::chrono::system_clock::now());
  // Far deadlines come as years: never is close enough, and cannot overflow.
  if (left > std::chrono::hours(24 * 365)) return Deadline();
  return Deadline::After(std::max<int64_t>(left.count(), 0));
}

// Turns deltas into Generate's responses.
class PlainEncoder {
 public:
  using Response = v1::GenerateResponse;
  void AddText(const std::string& text, Response* response) { *response->mutable_text() += text; }
  bool Finish(Response*) { return false; }
};

// Turns deltas into Chat's responses: reasoning, content and tool calls apart.
class ChatEncoder {
 public:
  using Response = v1::ChatResponse;
  ChatEncoder(ReplyStart start, const JsonValue& tools, std::string call_prefix)
      : parser_(start, tools), call_prefix_(std::move(call_prefix)) {}
  void AddText(const std::string& text, Response* response) { Add(parser_.Push(text), response); }
  // True if there were tool calls.
  bool Finish(Response* response) {
    Add(parser_.Finish(), response);
    return calls_ > 0;
  }

 private:
  void Add(const std::vector<ReplyEvent>& events, Response* response) {
    for (const ReplyEvent& event : events) {
      switch (event.kind) {
        case ReplyEvent::Kind::kReasoning:
          *response->mutable_reasoning_content() += event.text;
          break;
        case ReplyEvent::Kind::kContent:
          *response->mutable_content() += event.text;
          break;
        case ReplyEvent::Kind::kToolCall: {
          v1::ToolCall* call = response->add_tool_calls();
          call->set_id(absl::StrFormat("call_%s_%d", call_prefix_, calls_++));
          call->set_name(event.name);
          call->set_arguments(event.arguments.Dump());
          break;
        }
      }
    }
  }

  ReplyParser parser_;
  std::string call_prefix_;
  int calls_ = 0;
};

// One streaming call. The engine's publisher, gRPC's threads and cancellation all meet under one
// mutex; nothing blocks while it is held. At most one write is under way: what comes meanwhile
// waits in the OutputStream. A client that takes nothing for `part_ms` is dropped.
template <typename Encoder>
class StreamReactor final : public grpc::ServerWriteReactor<typename Encoder::Response> {
 public:
  using Response = typename Encoder::Response;

  StreamReactor(Engine& engine, grpc::CallbackServerContext* context, std::shared_ptr<Call> call,
                int64_t part_ms)
      : engine_(engine),
        context_(context),
        call_(std::move(call)),
        part_ms_(part_ms),
        link_(std::make_shared<Link>()) {
    link_->reactor = this;
  }

  // Starts the answer, or ends the call with an error.
  void Begin(StatusOr<Request> request, Encoder encoder) {
    StatusOr<std::shared_ptr<OutputStream>> stream =
        request.ok() ? engine_.Submit(std::move(*request))
                     : StatusOr<std::shared_ptr<OutputStream>>(request.status());
    if (!stream.ok()) {
      this->Finish(EndCall(*call_, context_, stream.status()));
      return;
    }
    {
      const std::lock_guard lock(link_->mutex);
      encoder_.emplace(std::move(encoder));
      stream_ = *stream;
      if (cancelled_) engine_.Cancel(stream_->id());
    }
    (*stream)->SetNotify([link = link_] {
      const std::lock_guard lock(link->mutex);
      if (link->reactor != nullptr) link->reactor->Pump();
    });
  }

  void OnWriteDone(bool ok) override {
    const std::shared_ptr<Link> link = link_;
    const std::lock_guard lock(link->mutex);
    writing_ = false;
    if (!ok && !closed_) {
      engine_.Cancel(stream_->id());
      Close(absl::CancelledError("the client is gone"));
      return;
    }
    Pump();
  }

  void OnCancel() override {
    const std::lock_guard lock(link_->mutex);
    cancelled_ = true;
    if (stream_ != nullptr) engine_.Cancel(stream_->id());
  }

  void OnDone() override {
    const std::shared_ptr<Link> link = link_;
    const std::lock_guard lock(link->mutex);
    link->reactor = nullptr;
    delete this;
  }

 private:
  // Outlives the reactor, so that a late notification finds nobody instead of freed memory.
  // Recursive: gRPC may call back from within StartWrite.
  struct Link {
    std::recursive_mutex mutex;
    StreamReactor* reactor = nullptr;
    std::optional<grpc::Alarm> alarm;
  };

  // Sends the next response if none is under way. Nothing may follow a call of StartWrite or
  // Finish: they may end this.
  void Pump() {
    if (writing_ || closed_ || stream_ == nullptr) return;
    if (outbox_.empty()) Refill();
    if (!outbox_.empty()) {
      current_ = std::move(outbox_.front());
      outbox_.pop_front();
      writing_ = true;
      written_by_ = Deadline::After(part_ms_);
      if (!watched_) Watch();
      this->StartWrite(&current_);
    } else if (ended_) {
      Close(final_);
    }
  }

  void Close(const Status& status) {
    closed_ = true;
    this->Finish(EndCall(*call_, context_, status));
  }

  // Looks after `part_ms` whether the same part is still being written, and so on.
  void Watch() {
    watched_ = true;
    link_->alarm.emplace();
    link_->alarm->Set(std::chrono::system_clock::now() + std::chrono::milliseconds(part_ms_),
                      [weak = std::weak_ptr<Link>(link_)](bool) {
                        const std::shared_ptr<Link> link = weak.lock();
                        if (link == nullptr) return;
                        const std::lock_guard lock(link->mutex);
                        if (link->reactor != nullptr) link->reactor->Watched();
                      });
  }

  void Watched() {
    watched_ = false;
    if (!writing_ || closed_) return;
    if (!written_by_.Passed()) return Watch();
    log::Warning("request %s: its client has taken nothing for %d s and is dropped", call_->id(),
                 part_ms_ / 1000);
    context_->TryCancel();
  }

  void Refill() {
    if (ended_) return;
    const OutputDelta delta = stream_->Take();
    if (delta.ids.empty() && delta.text.empty() && !delta.finished) return;
    Response response;
    encoder_->AddText(delta.text, &response);
    for (size_t i = 0; i < delta.ids.size(); ++i) {
      if (i > 0 && i % kIdsPerResponse == 0) outbox_.push_back(std::exchange(response, {}));
      response.add_token_ids(delta.ids[i]);
      if (i < delta.logprobs.size()) ToProto(delta.logprobs[i], response.add_logprobs());
    }
    if (delta.finished) {
      ended_ = true;
      const Summary& summary = stream_->summary();
      const bool tool_calls = encoder_->Finish(&response);
      if (summary.reason == FinishReason::kStop || summary.reason == FinishReason::kLength) {
        response.set_finish_reason(ToProto(summary.reason, tool_calls));
        ToProto(summary, response.mutable_usage(), response.mutable_timings());
      } else {
        final_ = summary.error.ok() ? absl::CancelledError("cancelled") : summary.error;
      }
    }
    outbox_.push_back(std::move(response));
  }

  Engine& engine_;
  grpc::CallbackServerContext* const context_;  // gRPC's, until OnDone
  const std::shared_ptr<Call> call_;
  const int64_t part_ms_;
  const std::shared_ptr<Link> link_;
  std::optional<Encoder> encoder_;
  std::shared_ptr<OutputStream> stream_;
  std::deque<Response> outbox_;
  Response current_;  // being written
  bool writing_ = false;
  Deadline written_by_;   // the part that is being written
  bool watched_ = false;  // an alarm is set
  bool cancelled_ = false;
  bool ended_ = false;   // the engine has said everything
  bool closed_ = false;  // Finish was called
  Status final_;
};

}  // namespace lockstep
