#include "runtime/serve/http_api.h"

#include <functional>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "runtime/base/log.h"
#include "runtime/base/version.h"
#include "runtime/http/server.h"
#include "runtime/serve/anthropic_reply.h"
#include "runtime/serve/anthropic_request.h"
#include "runtime/serve/call.h"
#include "runtime/serve/cluster_json.h"
#include "runtime/serve/http_errors.h"
#include "runtime/serve/json_fields.h"
#include "runtime/serve/json_out.h"
#include "runtime/serve/metrics_text.h"
#include "runtime/serve/openai_reply.h"
#include "runtime/serve/openai_request.h"
#include "runtime/serve/openapi.h"
#include "runtime/serve/page.h"
#include "runtime/serve/responses_reply.h"
#include "runtime/serve/responses_request.h"
#include "runtime/serve/text_routes.h"

namespace lockstep {
namespace {

constexpr char kJsonType[] = "application/json";

std::unique_ptr<HttpReply> JsonReply(int status, const Json& json) {
  return HttpText(status, kJsonType, Dump(json) + "\n");
}

// An answer with what its call says beside it.
class CallReply final : public HttpReply {
 public:
  CallReply(std::shared_ptr<Call> call, std::unique_ptr<HttpReply> inner)
      : call_(std::move(call)), inner_(std::move(inner)) {}

  std::optional<HttpHead> Head() override {
    std::optional<HttpHead> head = inner_->Head();
    if (!head.has_value()) return head;
    call_->SetStatus({"status", int64_t{head->status}});
    for (HttpField& field : call_->Fields()) head->fields.push_back(std::move(field));
    head->fields.push_back({"request-id", call_->id()});  // where Anthropic's clients look
    return head;
  }
  HttpPart Next() override { return inner_->Next(); }
  std::string_view Sign() override { return inner_->Sign(); }

 private:
  const std::shared_ptr<Call> call_;
  const std::unique_ptr<HttpReply> inner_;  // ends first
};

class Api final : public HttpApi {
 public:
  Api(const ServedModel& model, const ModelText& text, Access* access, Engine& engine)
      : model_(model),
        text_(text),
        access_(access == nullptr ? Access::Open() : *access),
        engine_(engine),
        source_{model.name, SourceVersion(), text.tokenizer.get()} {}
  ~Api() override { Shutdown(0); }

  Status Start(const HttpApiOptions& options) {
    cluster_ = options.cluster;
    HttpServerOptions http;
    http.host = options.host;
    http.port = options.port;
    http.most_connections = options.most_connections;
    http.most_head_bytes = 16 << 10;
    http.most_body_bytes = options.most_body_bytes;
    http.request_ms = 10'000;
    http.tls = options.tls;
    encrypted_ = options.tls.given();
    StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Listen(http);
    if (!server.ok()) {
      return UsageError(
          "HTTP on %s port %d: %s; choose another with --port (0 picks a free one) or --host",
          options.host, options.port, MessageOf(server.status()));
    }
    server_ = std::move(*server);
    server_->Serve({
        .refuse = [this](const HttpCall& call) -> Reply {
          Reply refusal = Refusal(call);
          return refusal == nullptr ? nullptr : WithCall(BeginCall(call), std::move(refusal));
        },
        .answer = [this](HttpCall call, std::function<void()> wake) { return Answer(call, wake); },
        .malformed =
            [this](const HttpCall& call, int status, std::string_view what) {
              std::vector<HttpField> more;
              if (status == 503) more.push_back({"Retry-After", "1"});
              return WithCall(BeginCall(call),
                              ErrorReply(ShapeOf(call), status, what, std::move(more)));
            },
    });
    return OkStatus();
  }

  int port() const override { return server_->port(); }

  static std::vector<HttpRoute> AllRoutes() {
    std::vector<HttpRoute> all;
    for (const Route& route : Routes())
      all.push_back({route.method, route.path, route.audience != Audience::kWithKey});
    return all;
  }

  void Shutdown(int64_t grace_ms) override {
    if (server_ == nullptr) return;
    server_->Shutdown(grace_ms);
    server_.reset();
  }

 private:
  using Reply = std::unique_ptr<HttpReply>;
  // What making an answer needs beside the request.
  struct Context {
    std::function<void()> wake;
    std::shared_ptr<Call> call;  // null on open routes
  };

  enum class Audience {  // whom a route answers
    kAnyone,
    kWithoutKey,  // but where there are no keys, only this machine
    kWithKey,
  };
  struct Route {
    const char* method;
    const char* path;
    Audience audience;
    Reply (Api::*answer)(const HttpCall& call, const Context& context);
  };
  static std::span<const Route> Routes();

  static std::string_view PathOf(const HttpCall& call) {
    const std::string_view target = call.target;
    return target.substr(0, target.find('?'));
  }

  static ErrorShape ShapeOf(const HttpCall& call) {
    return PathOf(call).starts_with("/v1/messages") ? ErrorShape::kAnthropic : ErrorShape::kOpenAi;
  }

  const Route* RouteOf(const HttpCall& call, std::string* methods) const {
    for (const Route& route : Routes()) {
      if (PathOf(call) != route.path) continue;
      // HEAD is GET without the body.
      if (call.method == route.method || (call.method == "HEAD" && route.method[0] == 'G'))
        return &route;
      *methods = route.method[0] == 'G' ? "GET, HEAD" : route.method;
    }
    return nullptr;
  }

  // Without keys: that the request is meant for this server, and comes from no page of another
  // site. Over TLS the certificate proves the first.
  bool IsMeant(const HttpCall& call) const {
    const std::string_view host = call.Field("Host"), origin = call.Field("Origin");
    if (!encrypted_ && !IsLoopbackName(host)) return false;
    if (origin.empty()) return true;
    const size_t scheme = origin.find("://");
    if (scheme == std::string_view::npos) return false;
    const std::string_view site = origin.substr(scheme + 3);
    return site == host || (IsLoopbackName(site) && IsLoopbackName(host));
  }

  std::shared_ptr<Call> BeginCall(const HttpCall& call) const {
    std::string methods;
    const Route* route = RouteOf(call, &methods);
    Arrival arrival{.model = model_.name,
                    .request_id = call.Field("x-request-id"),
                    .traceparent = call.Field("traceparent")};
    if (route != nullptr) {
      arrival.route = absl::StrFormat("%s %s", route->method, route->path);
      arrival.small = route->method[0] == 'G';
    }
    return std::make_shared<Call>(access_, arrival, access_.Find(KeyOf(call)));
  }

  static std::string_view KeyOf(const HttpCall& call) {
    return lockstep::KeyOf(call.Field("Authorization"), call.Field("x-api-key"));
  }

  static Reply WithCall(std::shared_ptr<Call> call, Reply reply) {
    return std::make_unique<CallReply>(std::move(call), std::move(reply));
  }

  // Also all that open routes say: strangers get nothing that is kept for them.
  Reply Refusal(const HttpCall& call) {
    const ErrorShape shape = ShapeOf(call);
    std::string methods;
    const Route* route = RouteOf(call, &methods);
    const auto is_for = [route](Audience audience) {
      return route != nullptr && route->audience == audience;
    };
    if (is_for(Audience::kAnyone)) return (this->*route->answer)(call, {});
    if (!access_.asks_for_keys() && !IsMeant(call)) {
      return ErrorReply(shape, 403,
                        encrypted_ ? "without API keys this server answers to no page of another "
                                     "site: see --api-key-file"
                                   : "without API keys this server answers to localhost only: see "
                                     "--api-key-file");
    }
    if (is_for(Audience::kWithoutKey)) return (this->*route->answer)(call, {});
    if (!access_.Find(KeyOf(call)).has_value()) return Stranger(call);
    if (route != nullptr) return nullptr;
    if (!methods.empty())
      return ErrorReply(shape, 405, "this route answers to " + methods, {{"Allow", methods}});
    return ErrorReply(shape, 404, "there is nothing at " + std::string(PathOf(call)));
  }

  static Reply Stranger(const HttpCall& call) {
    return ErrorReply(ShapeOf(call), 401,
                      KeyOf(call).empty() ? "an API key is needed: Authorization: Bearer KEY"
                                          : "this API key is not known here",
                      {{"WWW-Authenticate", "Bearer"}});
  }

  Reply Answer(const HttpCall& call, const std::function<void()>& wake) {
    std::string methods;
    const Context context{wake, BeginCall(call)};
    // The key may have gone since the head was let in.
    return WithCall(context.call, context.call->known()
                                      ? (this->*RouteOf(call, &methods)->answer)(call, context)
                                      : Stranger(call));
  }

  Reply Live(const HttpCall&, const Context&) { return JsonReply(200, {{"status", "ok"}}); }

  Reply Ready(const HttpCall&, const Context&) {
    // Who has no key hears no more than this.
    return engine_.Readiness().ok()
               ? JsonReply(200, {{"status", "ok"}})
               : ErrorReply(ErrorShape::kOpenAi, 503, "not ready", {{"Retry-After", "5"}});
  }

  Reply Health(const HttpCall&, const Context&) {
    const Status status = engine_.Readiness();
    if (!status.ok()) return ErrorReply(ErrorShape::kOpenAi, status);
    const EngineLoad load = engine_.load();
    return JsonReply(200, {{"status", "ok"},
                           {"ranks", model_.ranks},
                           {"requests_running", load.running},
                           {"requests_waiting", load.waiting},
                           {"kv_blocks_used", load.kv_blocks_used},
                           {"kv_blocks", load.kv_blocks}});
  }

  Reply Version(const HttpCall&, const Context&) {
    return JsonReply(200, {{"version", SourceVersion()}});
  }

  Reply OpenApi(const HttpCall&, const Context&) {
    return HttpText(200, kJsonType, std::string(OpenApiText()));
  }

  Reply Metrics(const HttpCall&, const Context&) {
    return HttpText(200, "text/plain; version=0.0.4; charset=utf-8",
                    MetricsText(model_.name, engine_.load(), engine_.counts()) +
                        ClusterMetricsText(model_.name, View()));
  }

  ClusterView View() const {
    if (cluster_) return cluster_();
    ClusterView view;
    view.readiness = engine_.Readiness();
    view.load = engine_.load();
    return view;
  }
  Reply Cluster(const HttpCall&, const Context&) {
    return HttpText(200, kJsonType, ClusterJson(model_, View()));
  }
  Reply Page(const HttpCall&, const Context&) { return PageReply(); }

  Reply Models(const HttpCall&, const Context&) {
    Json model = {{"id", model_.name},
                  {"object", "model"},
                  {"created", started_},
                  {"owned_by", "lockstep"},
                  {"root", model_.name},
                  {"parent", nullptr},
                  {"max_model_len", model_.max_model_len},
                  {"vocab_size", model_.vocab_size}};
    return JsonReply(200, {{"object", "list"}, {"data", Json::array({std::move(model)})}});
  }

  // The body as an object.
  static StatusOr<JsonValue> Body(const HttpCall& call) {
    StatusOr<JsonValue> body = ParseJson(call.body, kStrangersJson);
    if (!body.ok()) return RequestError("the body is not JSON: %s", MessageOf(body.status()));
    if (!body->is_object())
      return RequestError("the body is %s, but must be an object", body->KindName());
    if (body->AsObject().size() > kMaxFields)
      return RequestError("the body has more than %d fields", kMaxFields);
    return body;
  }

  // Claude's own clients ask for Claude's models, whatever answers.
  Status CheckModel(const JsonValue& body, ErrorShape shape) const {
    JsonFields fields(body);
    std::optional<std::string> model;
    LOCKSTEP_RETURN_IF_ERROR(fields.Read("model", &model));
    if (model.value_or("").empty() || *model == model_.name) return OkStatus();
    if (shape == ErrorShape::kAnthropic && model->starts_with("claude-")) {
      TellNotes({"models called claude-... are answered by " + model_.name});
      return OkStatus();
    }
    return MakeError(ErrorKind::kRequest, absl::StatusCode::kNotFound,
                     absl::StrFormat("The model '%s' does not exist here; '%s' does.",
                                     model->substr(0, 200), model_.name));
  }

  // Each once, however many requests have it.
  void TellNotes(const std::vector<std::string>& notes) const {
    const std::lock_guard lock(mutex_);
    for (const std::string& note : notes) {
      if (told_.size() < 100 && told_.insert(note).second) log::Warning("HTTP requests: %s", note);
    }
  }

  template <typename Parse, typename Start>
  Reply Complete(const HttpCall& call, const Context& context, Parse parse, Start start) {
    const auto reply = [&]() -> StatusOr<Reply> {
      LOCKSTEP_RETURN_IF_ERROR(engine_.Accepts());  // refusing is cheap: nothing is read yet
      LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue body, Body(call));
      LOCKSTEP_RETURN_IF_ERROR(CheckModel(body, ShapeOf(call)));
      LOCKSTEP_ASSIGN_OR_RETURN(OpenAiRequest request, parse(body, text_, model_.max_model_len));
      TellNotes(request.notes);
      LOCKSTEP_RETURN_IF_ERROR(context.call->Admit(request.requests, model_.max_model_len));
      return start(engine_, source_, std::move(request), context.wake);
    };
    StatusOr<Reply> made = reply();
    if (made.ok()) return std::move(*made);
    return ErrorReply(ShapeOf(call), made.status());
  }

  Reply ChatCompletions(const HttpCall& call, const Context& context) {
    return Complete(call, context, ParseChatCompletion, StartChatReply);
  }
  Reply Completions(const HttpCall& call, const Context& context) {
    return Complete(call, context, ParseCompletion, StartTextReply);
  }

  // An API whose requests become chats.
  using ToChat = StatusOr<JsonValue> (*)(const JsonValue& body, std::vector<std::string>* notes);
  StatusOr<OpenAiRequest> ParseAsChat(ToChat to_chat, const JsonValue& body,
                                      int64_t max_model_len) const {
    std::vector<std::string> notes;
    LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue chat, to_chat(body, &notes));
    LOCKSTEP_ASSIGN_OR_RETURN(OpenAiRequest request,
                              ParseChatCompletion(chat, text_, max_model_len));
    request.notes.insert(request.notes.end(), notes.begin(), notes.end());
    return request;
  }
  template <typename Start>
  Reply CompleteAsChat(const HttpCall& call, const Context& context, ToChat to_chat, Start start) {
    const auto parse = [&](const JsonValue& body, const ModelText&, int64_t max_model_len) {
      return ParseAsChat(to_chat, body, max_model_len);
    };
    return Complete(call, context, parse, start);
  }

  Reply Messages(const HttpCall& call, const Context& context) {
    return CompleteAsChat(call, context, ChatFromMessages, StartMessagesReply);
  }
  Reply Responses(const HttpCall& call, const Context& context) {
    return CompleteAsChat(call, context, ChatFromResponses, StartResponsesReply);
  }

  StatusOr<Json> CountOf(const JsonValue& body) const {
    LOCKSTEP_RETURN_IF_ERROR(CheckModel(body, ErrorShape::kAnthropic));
    LOCKSTEP_ASSIGN_OR_RETURN(const OpenAiRequest request,
                              ParseAsChat(ChatFromMessages, body, INT64_MAX));
    return Json{{"input_tokens", request.requests[0].prompt.size()}};
  }

  // A small answer, made at once.
  template <typename Make>
  Reply Small(const HttpCall& call, Make make) const {
    const StatusOr<JsonValue> body = Body(call);
    if (!body.ok()) return ErrorReply(ShapeOf(call), body.status());
    const StatusOr<Json> answer = make(*body);
    return answer.ok() ? JsonReply(200, *answer) : ErrorReply(ShapeOf(call), answer.status());
  }
  Reply CountTokens(const HttpCall& call, const Context&) {
    return Small(call, [&](const JsonValue& body) { return CountOf(body); });
  }
  Reply Tokenize(const HttpCall& call, const Context&) {
    return Small(call, [&](const JsonValue& body) { return TokensOf(text_, model_, body); });
  }
  Reply Detokenize(const HttpCall& call, const Context&) {
    return Small(call, [&](const JsonValue& body) { return TextOf(text_, model_, body); });
  }
  Reply ApplyTemplate(const HttpCall& call, const Context&) {
    return Small(call, [&](const JsonValue& body) { return RenderedOf(text_, body); });
  }

  const ServedModel model_;
  const ModelText& text_;
  Access& access_;
  Engine& engine_;
  bool encrypted_ = false;
  const ReplySource source_;
  const int64_t started_ = UnixSeconds();
  mutable std::mutex mutex_;
  mutable std::set<std::string> told_;
  std::function<ClusterView()> cluster_;
  std::unique_ptr<HttpServer> server_;
};

std::span<const Api::Route> Api::Routes() {
  static constexpr Route kTable[] = {
      {"GET", "/", Audience::kWithoutKey, &Api::Page},
      {"GET", "/cluster", Audience::kWithKey, &Api::Cluster},
      {"GET", "/health/live", Audience::kAnyone, &Api::Live},
      {"GET", "/health/ready", Audience::kAnyone, &Api::Ready},
      {"GET", "/health", Audience::kWithKey, &Api::Health},
      {"GET", "/ping", Audience::kWithKey, &Api::Health},
      {"GET", "/version", Audience::kWithKey, &Api::Version},
      {"GET", "/metrics", Audience::kWithKey, &Api::Metrics},
      {"GET", "/openapi.json", Audience::kWithKey, &Api::OpenApi},
      {"GET", "/v1/models", Audience::kWithKey, &Api::Models},
      {"POST", "/v1/chat/completions", Audience::kWithKey, &Api::ChatCompletions},
      {"POST", "/v1/completions", Audience::kWithKey, &Api::Completions},
      {"POST", "/v1/responses", Audience::kWithKey, &Api::Responses},
      {"POST", "/v1/messages", Audience::kWithKey, &Api::Messages},
      {"POST", "/v1/messages/count_tokens", Audience::kWithKey, &Api::CountTokens},
      {"POST", "/tokenize", Audience::kWithKey, &Api::Tokenize},
      {"POST", "/detokenize", Audience::kWithKey, &Api::Detokenize},
      {"POST", "/apply-template", Audience::kWithKey, &Api::ApplyTemplate},
  };
  return kTable;
}

}  // namespace

std::vector<HttpRoute> HttpRoutes() { return Api::AllRoutes(); }

StatusOr<std::unique_ptr<HttpApi>> StartHttpApi(const HttpApiOptions& options,
                                                const ServedModel& model, const ModelText& text,
                                                Access* access, Engine& engine) {
  auto api = std::make_unique<Api>(model, text, access, engine);
  LOCKSTEP_RETURN_IF_ERROR(api->Start(options));
  return StatusOr<std::unique_ptr<HttpApi>>(std::move(api));
}

}  // namespace lockstep
