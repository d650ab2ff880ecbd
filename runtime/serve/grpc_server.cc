#include "runtime/serve/grpc_server.h"

#include <grpc/support/log.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/security/tls_certificate_provider.h>
#include <grpcpp/security/tls_credentials_options.h>

#include <chrono>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "lockstep/v1/inference.grpc.pb.h"
#include "runtime/base/log.h"
#include "runtime/base/version.h"
#include "runtime/engine/defaults.h"
#include "runtime/serve/call.h"
#include "runtime/serve/convert.h"
#include "runtime/serve/grpc_stream.h"
#include "runtime/serve/openai_request.h"

namespace lockstep {
namespace {

// As over HTTP: who is not there cannot hold what others wait for.
constexpr int kHandshakeMs = 10'000;
constexpr int kProbeMs = 30'000;  // after so much silence the client is asked whether it is there
constexpr int kProbeAnswerMs = 10'000;
constexpr int kIdleMs = 300'000;
// Of all that connections hold. A key is looked at when its message is whole, so strangers could
// fill the memory with halves; beyond this gRPC ends streams.
constexpr size_t kMostHeldBytes = 256 << 20;

struct PreparedChat {
  Request request;
  ReplyStart start = ReplyStart::kContent;
  JsonValue tools;
};

StatusOr<PreparedChat> ToRequest(const v1::ChatRequest& chat, const ModelText& text,
                                 int64_t max_model_len) {
  if (!text.chat_family) {
    return MakeError(ErrorKind::kRequest, absl::StatusCode::kFailedPrecondition,
                     MessageOf(text.RequireChatFamily().status()));
  }
  PreparedChat prepared;
  LOCKSTEP_RETURN_IF_ERROR(FillRequest(chat.sampling(), chat.stop(), text, &prepared.request));
  prepared.request.priority = chat.priority();
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatRequest conversation, ToChatRequest(chat));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string prompt, RenderChat(*text.chat_family, conversation));
  LOCKSTEP_ASSIGN_OR_RETURN(prepared.request.prompt, EncodePrompt(prompt, text, max_model_len));
  prepared.start = ReplyStartOf(prompt);
  prepared.tools = conversation.tools;
  ReplyRules rules;
  rules.tools = conversation.tools;
  LOCKSTEP_RETURN_IF_ERROR(FillRules(chat, &rules));
  LOCKSTEP_ASSIGN_OR_RETURN(prepared.request.grammar,
                            MakeReplyGrammar(rules, prepared.start, *text.chat_family));
  return prepared;
}

StatusOr<Request> ToRequest(const v1::GenerateRequest& generate, const ModelText& text,
                            int64_t max_model_len) {
  Request request;
  LOCKSTEP_RETURN_IF_ERROR(FillRequest(generate.sampling(), generate.stop(), text, &request));
  request.priority = generate.priority();
  switch (generate.prompt_case()) {
    case v1::GenerateRequest::kText: {
      LOCKSTEP_ASSIGN_OR_RETURN(request.prompt, EncodePrompt(generate.text(), text, max_model_len));
      break;
    }
    case v1::GenerateRequest::kTokenIds:
      request.prompt.assign(generate.token_ids().ids().begin(), generate.token_ids().ids().end());
      break;
    case v1::GenerateRequest::PROMPT_NOT_SET:
      return RequestError("the prompt is missing: set text or token_ids");
  }
  ReplyRules rules;
  LOCKSTEP_RETURN_IF_ERROR(FillSchema(generate.response_schema(), &rules));
  LOCKSTEP_ASSIGN_OR_RETURN(request.grammar, MakeTextGrammar(rules));
  return request;
}

// Uses gRPC's callback interface: no thread is held while an answer is being computed.
class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(const ServedModel& model, const ModelText& text, Access* access, Engine& engine,
                   int64_t part_ms)
      : model_(model),
        text_(text),
        access_(access == nullptr ? Access::Open() : *access),
        engine_(engine),
        part_ms_(part_ms) {}

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
  // The client is told at once what there is to say beside the answer.
  std::shared_ptr<Call> BeginCall(grpc::CallbackServerContext* context, const char* method) {
    const Arrival arrival{.route = std::string("grpc ") + method,
                          .model = model_.name,
                          .request_id = Metadata(*context, "x-request-id"),
                          .traceparent = Metadata(*context, "traceparent")};
    return std::make_shared<Call>(access_, arrival, access_.Find(KeyOf(*context)));
  }
  // The request that `made` gives, let in.
  template <typename Made, typename Requested>
  StatusOr<Made> LetIn(StatusOr<Made> made, Requested requested, Call& call,
                       grpc::CallbackServerContext* context) {
    if (made.ok()) {
      Request& request = requested(*made);
      request.deadline = DeadlineOf(*context);
      if (const Status status = call.Admit(std::span(&request, 1), model_.max_model_len);
          !status.ok())
        made = status;
    }
    for (const HttpField& field : call.Fields())
      context->AddInitialMetadata(field.name, field.value);
    return made;
  }
  // A small answer for who may have it.
  template <typename Fill>
  grpc::ServerUnaryReactor* Answer(grpc::CallbackServerContext* context, const char* method,
                                   const Fill& fill) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const std::shared_ptr<Call> call = BeginCall(context, method);
    for (const HttpField& field : call->Fields())
      context->AddInitialMetadata(field.name, field.value);
    const Status allowed = CheckKey(*call, *context);
    reactor->Finish(EndCall(*call, context, allowed.ok() ? fill() : allowed));
    return reactor;
  }

  const ServedModel model_;
  const ModelText& text_;
  Access& access_;
  Engine& engine_;
  const int64_t part_ms_;
};

grpc::ServerWriteReactor<v1::GenerateResponse>* InferenceService::Generate(
    grpc::CallbackServerContext* context, const v1::GenerateRequest* generate) {
  const std::shared_ptr<Call> call = BeginCall(context, "Generate");
  // Deletes itself in OnDone.
  auto* reactor = new StreamReactor<PlainEncoder>(engine_, context, call, part_ms_);
  const Status allowed = CheckKey(*call, *context);
  StatusOr<Request> request = LetIn(
      allowed.ok() ? ToRequest(*generate, text_, model_.max_model_len) : allowed,
      [](Request& made) -> Request& { return made; }, *call, context);
  reactor->Begin(std::move(request), PlainEncoder());
  return reactor;
}

grpc::ServerWriteReactor<v1::ChatResponse>* InferenceService::Chat(
    grpc::CallbackServerContext* context, const v1::ChatRequest* chat) {
  const std::shared_ptr<Call> call = BeginCall(context, "Chat");
  // Deletes itself in OnDone.
  auto* reactor = new StreamReactor<ChatEncoder>(engine_, context, call, part_ms_);
  const Status allowed = CheckKey(*call, *context);
  StatusOr<PreparedChat> prepared = LetIn(
      allowed.ok() ? ToRequest(*chat, text_, model_.max_model_len) : allowed,
      [](PreparedChat& made) -> Request& { return made.request; }, *call, context);
  if (!prepared.ok()) {
    reactor->Begin(prepared.status(), ChatEncoder(ReplyStart::kContent, JsonValue(), ""));
    return reactor;
  }
  // Call ids are unique among the turns of a conversation, also across restarts of the server.
  ChatEncoder encoder(prepared->start, prepared->tools, absl::StrFormat("%016x", FreshSeed()));
  reactor->Begin(std::move(prepared->request), std::move(encoder));
  return reactor;
}

grpc::ServerUnaryReactor* InferenceService::Tokenize(grpc::CallbackServerContext* context,
                                                     const v1::TokenizeRequest* request,
                                                     v1::TokenizeResponse* response) {
  return Answer(context, "Tokenize", [&] {
    const std::vector<int32_t> ids = text_.tokenizer->Encode(request->text());
    response->mutable_token_ids()->Assign(ids.begin(), ids.end());
    return OkStatus();
  });
}

grpc::ServerUnaryReactor* InferenceService::Detokenize(grpc::CallbackServerContext* context,
                                                       const v1::DetokenizeRequest* request,
                                                       v1::DetokenizeResponse* response) {
  return Answer(context, "Detokenize", [&] {
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
  return Answer(context, "GetModelInfo", [&] {
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
  RunningServer(const ServedModel& model, const ModelText& text, Access* access, Engine& engine,
                int64_t part_ms)
      : service_(model, text, access, engine, part_ms) {}
  ~RunningServer() override { Shutdown(0); }

  Status Start(const GrpcServerOptions& options) {
    gpr_set_log_function(LogQuietly);
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    // Without this a second server would share the port silently.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, options.max_concurrent_streams);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, kHandshakeMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, kProbeMs);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, kProbeAnswerMs);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, kIdleMs);
    builder.SetResourceQuota(grpc::ResourceQuota("clients").Resize(kMostHeldBytes));
    builder.SetMaxReceiveMessageSize(options.max_receive_bytes);
    builder.AddListeningPort(AddressOf(options.host, options.port), CredentialsOf(options.tls),
                             &port_);
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
  // Looks at the files every second by itself.
  static std::shared_ptr<grpc::ServerCredentials> CredentialsOf(const TlsFiles& tls) {
    if (!tls.given()) return grpc::InsecureServerCredentials();
    grpc::experimental::TlsServerCredentialsOptions options(
        std::make_shared<grpc::experimental::FileWatcherCertificateProvider>(tls.key,
                                                                             tls.certificate, 1));
    options.watch_identity_key_cert_pairs();
    options.set_cert_request_type(GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE);
    return grpc::experimental::TlsServerCredentials(options);
  }

  InferenceService service_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<GrpcServer>> StartGrpcServer(const GrpcServerOptions& options,
                                                      const ServedModel& model,
                                                      const ModelText& text, Access* access,
                                                      Engine& engine) {
  auto server = std::make_unique<RunningServer>(model, text, access, engine, options.part_ms);
  LOCKSTEP_RETURN_IF_ERROR(server->Start(options));
  server->SetServing(true);
  return StatusOr<std::unique_ptr<GrpcServer>>(std::move(server));
}

}  // namespace lockstep
