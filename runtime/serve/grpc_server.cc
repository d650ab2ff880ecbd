#include "runtime/serve/grpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "lockstep/v1/inference.grpc.pb.h"
#include "runtime/base/log.h"
#include "runtime/base/version.h"
#include "runtime/engine/defaults.h"
#include "runtime/serve/convert.h"
#include "runtime/text/reply_parser.h"

namespace lockstep {
namespace {

// A status travels in the trailers, and clients refuse trailers of more than 8 KiB: a message may
// quote what the request said, so it is cut.
constexpr size_t kStatusMessageBytes = 1024;

grpc::Status ToGrpc(const Status& status) {
  if (status.ok()) return grpc::Status::OK;
  std::string message = MessageOf(status);
  if (message.size() > kStatusMessageBytes) {
    size_t end = kStatusMessageBytes;
    while (end > 0 && (static_cast<unsigned char>(message[end]) & 0xC0) == 0x80) --end;  // UTF-8
    message = message.substr(0, end) + " ...";
  }
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), message);
}

// Ids of one response: a reader that was slow gets several messages instead of one beyond its size
// limit.
constexpr size_t kIdsPerResponse = 256;

Deadline DeadlineOf(const grpc::CallbackServerContext& context) {
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
// waits in the OutputStream.
template <typename Encoder>
class StreamReactor final : public grpc::ServerWriteReactor<typename Encoder::Response> {
 public:
  using Response = typename Encoder::Response;

  explicit StreamReactor(Engine& engine) : engine_(engine), link_(std::make_shared<Link>()) {
    link_->reactor = this;
  }

  // Starts the answer, or ends the call with an error.
  void Begin(StatusOr<Request> request, Encoder encoder) {
    StatusOr<std::shared_ptr<OutputStream>> stream =
        request.ok() ? engine_.Submit(std::move(*request))
                     : StatusOr<std::shared_ptr<OutputStream>>(request.status());
    if (!stream.ok()) {
      this->Finish(ToGrpc(stream.status()));
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
      Close(grpc::Status(grpc::StatusCode::CANCELLED, "the client is gone"));
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
      this->StartWrite(&current_);
    } else if (ended_) {
      Close(final_);
    }
  }

  void Close(const grpc::Status& status) {
    closed_ = true;
    this->Finish(status);
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
        final_ = ToGrpc(summary.error);
        if (final_.ok()) final_ = grpc::Status(grpc::StatusCode::CANCELLED, "cancelled");
      }
    }
    outbox_.push_back(std::move(response));
  }

  Engine& engine_;
  const std::shared_ptr<Link> link_;
  std::optional<Encoder> encoder_;
  std::shared_ptr<OutputStream> stream_;
  std::deque<Response> outbox_;
  Response current_;  // being written
  bool writing_ = false;
  bool cancelled_ = false;
  bool ended_ = false;   // the engine has said everything
  bool closed_ = false;  // Finish was called
  grpc::Status final_;
};

struct PreparedChat {
  Request request;
  ReplyStart start = ReplyStart::kContent;
  JsonValue tools;
};

StatusOr<PreparedChat> ToRequest(const v1::ChatRequest& chat, const ModelText& text) {
  if (!text.chat_family) {
    return MakeError(ErrorKind::kRequest, absl::StatusCode::kFailedPrecondition,
                     MessageOf(text.RequireChatFamily().status()));
  }
  PreparedChat prepared;
  LOCKSTEP_RETURN_IF_ERROR(FillRequest(chat.sampling(), chat.stop(), text, &prepared.request));
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatRequest conversation, ToChatRequest(chat));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string prompt, RenderChat(*text.chat_family, conversation));
  prepared.request.prompt = text.tokenizer->Encode(prompt);
  prepared.start = ReplyStartOf(prompt);
  prepared.tools = conversation.tools;
  return prepared;
}

StatusOr<Request> ToRequest(const v1::GenerateRequest& generate, const ModelText& text) {
  Request request;
  LOCKSTEP_RETURN_IF_ERROR(FillRequest(generate.sampling(), generate.stop(), text, &request));
  switch (generate.prompt_case()) {
    case v1::GenerateRequest::kText:
      request.prompt = text.tokenizer->Encode(generate.text());
      break;
    case v1::GenerateRequest::kTokenIds:
      request.prompt.assign(generate.token_ids().ids().begin(), generate.token_ids().ids().end());
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return RequestError("the prompt is missing: set text or token_ids");
  }
  return request;
}

// Uses gRPC's callback interface: no thread is held while an answer is being computed.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(const ServedModel& model, const ModelText& text, const ApiKeys* keys,
                   Engine& engine)
      : model_(model), text_(text), keys_(keys), engine_(engine) {}

  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* generate) override;
  grpc::ServerWriteReactor<v1::ChatResponse>* Chat(grpc::CallbackServerContext* context,
                                                   const v1::ChatRequest* chat) override;
  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override;
  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override;
  grpc::ServerUnaryReactor* GetModelInfo(grpc::CallbackServerContext* context,
                                         const v1::GetModelInfoRequest* request,
                                         v1::GetModelInfoResponse* response) override;

 private:
  // OK, or UNAUTHENTICATED.
  Status CheckKey(const grpc::CallbackServerContext& context) const;
  // A small answer for who may have it.
  template <typename Fill>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const Fill& fill) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const Status allowed = CheckKey(*context);
    reactor->Finish(ToGrpc(allowed.ok() ? fill() : allowed));
    return reactor;
  }

  const ServedModel model_;
  const ModelText& text_;
  const ApiKeys* const keys_;
  Engine& engine_;
};

Status InferenceService::CheckKey(const grpc::CallbackServerContext& context) const {
  if (keys_ == nullptr) return OkStatus();
  const auto& metadata = context.client_metadata();
  const auto find = [&](const char* name) -> std::string_view {
    const auto found = metadata.find(name);
    if (found == metadata.end()) return {};
    return {found->second.data(), found->second.size()};
  };
  const std::string_view key = KeyOf(find("authorization"), find("x-api-key"));
  if (!keys_->NameOf(key).empty()) return OkStatus();
  return MakeError(ErrorKind::kRequest, absl::StatusCode::kUnauthenticated,
                   key.empty() ? "an API key is needed: metadata authorization: Bearer KEY"
                               : "this API key is not known here");
}

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* generate) {
  auto* reactor = new StreamReactor<PlainEncoder>(engine_);  // deletes itself in OnDone
  const Status allowed = CheckKey(*context);
  StatusOr<Request> request = allowed.ok() ? ToRequest(*generate, text_) : allowed;
  if (request.ok()) request->deadline = DeadlineOf(*context);
  reactor->Begin(std::move(request), PlainEncoder());
  return reactor;
}

grpc::ServerWriteReactor<v1::ChatResponse>* InferenceService::Chat(
    grpc::CallbackServerContext* context, const v1::ChatRequest* chat) {
  auto* reactor = new StreamReactor<ChatEncoder>(engine_);  // deletes itself in OnDone
  const Status allowed = CheckKey(*context);
  StatusOr<PreparedChat> prepared = allowed.ok() ? ToRequest(*chat, text_) : allowed;
  if (!prepared.ok()) {
    reactor->Begin(prepared.status(), ChatEncoder(ReplyStart::kContent, JsonValue(), ""));
    return reactor;
  }
  prepared->request.deadline = DeadlineOf(*context);
  // Call ids are unique among the turns of a conversation, also across restarts of the server.
  ChatEncoder encoder(prepared->start, prepared->tools, absl::StrFormat("%016x", FreshSeed()));
  reactor->Begin(std::move(prepared->request), std::move(encoder));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  return Answer(context, [&] {
    const std::vector<int32_t> ids = text_.tokenizer->Encode(request->text());
    response->mutable_token_ids()->Assign(ids.begin(), ids.end());
    return OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  return Answer(context, [&] {
    const std::vector<int32_t> ids(request->token_ids().begin(), request->token_ids().end());
    for (const int32_t id : ids) {
      if (id < 0 || id >= model_.vocab_size) {
        return RequestError("token_ids has %d, but the model's ids are 0 .. %d", id,
                            model_.vocab_size - 1);
      }
    }
    response->set_text(text_.tokenizer->Decode(ids, request->skip_special()));
    return OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::GetModelInfo(grpc::CallbackServerContext* context,
                                                         const v1::GetModelInfoRequest*,
                                                         v1::GetModelInfoResponse* response) {
  return Answer(context, [&] {
    response->set_name(model_.name);
    response->set_max_model_len(model_.max_model_len);
    response->set_vocab_size(model_.vocab_size);
    response->set_ranks(model_.ranks);
    if (text_.chat_family) response->set_chat_family(ChatFamilyName(*text_.chat_family));
    for (const int32_t id : text_.stop_token_ids) response->add_end_token_ids(id);
    response->set_max_running_requests(model_.max_running);
    response->set_server_version(SourceVersion());
    return OkStatus();
  });
}

constexpr char kServiceName[] = "lockstep.v1.Inference";

std::string AddressOf(const std::string& host, int64_t port) {
  // IPv6 addresses stand in brackets.
  const bool brackets = host.find(':') != std::string::npos && host.front() != '[';
  return brackets ? absl::StrFormat("[%s]:%d", host, port) : absl::StrFormat("%s:%d", host, port);
}

// gRPC prints what it meets by itself; the errors that matter are returned, the rest is for
// --log-level debug.
void LogQuietly(gpr_log_func_args* line) { log::Debug("gRPC: %s", std::string(line->message)); }

class RunningServer final : public GrpcServer {
 public:
  RunningServer(const ServedModel& model, const ModelText& text, const ApiKeys* keys,
                Engine& engine)
      : service_(model, text, keys, engine) {}
  ~RunningServer() override { Shutdown(0); }

  Status Start(const GrpcServerOptions& options) {
    gpr_set_log_function(LogQuietly);
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    // Without this a second server would share the port silently.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
    builder.SetMaxReceiveMessageSize(options.max_receive_bytes);
    builder.AddListeningPort(AddressOf(options.host, options.port),
                             grpc::InsecureServerCredentials(), &port_);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr || port_ == 0) {
      server_.reset();
      return UsageError(
          "gRPC cannot listen on %s port %d: the port is in use, or the address is not this "
          "machine's; "
          "choose another with --grpc-port (0 picks a free one) or --host",
          options.host, options.port);
    }
    return OkStatus();
  }

  int port() const override { return port_; }

  void SetServing(bool serving) override {
    if (grpc::HealthCheckServiceInterface* health = server_->GetHealthCheckService();
        health != nullptr) {
      health->SetServingStatus(serving);
      health->SetServingStatus(kServiceName, serving);
    }
  }

  void Shutdown(int64_t grace_ms) override {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now() + std::chrono::milliseconds(grace_ms));
    server_->Wait();
    server_.reset();
  }

 private:
  InferenceService service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<GrpcServer>> StartGrpcServer(const GrpcServerOptions& options,
                                                      const ServedModel& model,
                                                      const ModelText& text, const ApiKeys* keys,
                                                      Engine& engine) {
  auto server = std::make_unique<RunningServer>(model, text, keys, engine);
  LOCKSTEP_RETURN_IF_ERROR(server->Start(options));
  server->SetServing(true);
  return StatusOr<std::unique_ptr<GrpcServer>>(std::move(server));
}

}  // namespace lockstep
