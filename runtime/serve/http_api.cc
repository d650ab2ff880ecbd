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
#include "runtime/serve/cluster_json.h"
#include "runtime/serve/http_errors.h"
#include "runtime/serve/json_fields.h"
#include "runtime/serve/json_out.h"
#include "runtime/serve/metrics_text.h"
#include "runtime/serve/openai_reply.h"
#include "runtime/serve/openai_request.h"
#include "runtime/serve/openapi_generated.h"
#include "runtime/serve/page.h"
#include "runtime/serve/responses_reply.h"
#include "runtime/serve/responses_request.h"

namespace lockstep {
namespace {

constexpr char kJsonType[] = "application/json";

std::unique_ptr<HttpReply> JsonReply(int status, const Json& json) {
  return HttpText(status, kJsonType, Dump(json) + "\n");
}

class Api final : public HttpApi {
 public:
  Api(const ServedModel& model, const ModelText& text, const ApiKeys* keys, Engine& engine)
      : model_(model),
        text_(text),
        keys_(keys),
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
    StatusOr<std::unique_ptr<HttpServer>> server = HttpServer::Listen(http);
    if (!server.ok()) {
      return UsageError(
          "HTTP on %s port %d: %s; choose another with --port (0 picks a free one) or --host",
          options.host, options.port, MessageOf(server.status()));
    }
    server_ = std::move(*server);
    server_->Serve({
        .refuse = [this](const HttpCall& call) { return Refusal(call); },
        .answer = [this](HttpCall call, std::function<void()> wake) { return Answer(call, wake); },
        .malformed =
            [](const HttpCall& call, int status, std::string_view what) {
              std::vector<HttpField> more;
              if (status == 503) more.push_back({"Retry-After", "1"});
              return ErrorReply(ShapeOf(call), status, what, std::move(more));
            },
    });
    return OkStatus();
  }

  int port() const override { return server_->port(); }

  static std::vector<HttpRoute> AllRoutes() {
    std::vector<HttpRoute> all;
    for (const Route& route : Routes())
      all.push_back({route.method, route.path, route.access != Access::kWithKey});
    return all;
  }

  void Shutdown(int64_t grace_ms) override {
    if (server_ == nullptr) return;
    server_->Shutdown(grace_ms);
    server_.reset();
  }

 private:
  using Wake = std::function<void()>;
  using Reply = std::unique_ptr<HttpReply>;

  // Who is answered.
  enum class Access {
    kAnyone,
    kWithoutKey,  // but where there are no keys, only this machine
    kWithKey,
  };
  struct Route {
    const char* method;
    const char* path;
    Access access;
    Reply (Api::*answer)(const HttpCall& call, const Wake& wake);
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
  // site.
  static bool IsLocal(const HttpCall& call) {
    const std::string_view origin = call.Field("Origin");
    const size_t host = origin.find("://");
    return IsLoopbackName(call.Field("Host")) &&
           (origin.empty() ||
            (host != std::string_view::npos && IsLoopbackName(origin.substr(host + 3))));
  }

  // Also all that open routes say: strangers get nothing that is kept for them.
  Reply Refusal(const HttpCall& call) {
    const ErrorShape shape = ShapeOf(call);
    std::string methods;
    const Route* route = RouteOf(call, &methods);
    const auto is_for = [route](Access access) {
      return route != nullptr && route->access == access;
    };
    if (is_for(Access::kAnyone)) return (this->*route->answer)(call, {});
    if (keys_ == nullptr && !IsLocal(call)) {
      return ErrorReply(shape, 403,
                        "without API keys this server answers to localhost only: see "
                        "--api-key-file");
    }
    if (is_for(Access::kWithoutKey)) return (this->*route->answer)(call, {});
    const std::string_view key = KeyOf(call.Field("Authorization"), call.Field("x-api-key"));
    if (keys_ != nullptr && keys_->NameOf(key).empty()) {
      return ErrorReply(shape, 401,
                        key.empty() ? "an API key is needed: Authorization: Bearer KEY"
                                    : "this API key is not known here",
                        {{"WWW-Authenticate", "Bearer"}});
    }
    if (route != nullptr) return nullptr;
    if (!methods.empty())
      return ErrorReply(shape, 405, "this route answers to " + methods, {{"Allow", methods}});
    return ErrorReply(shape, 404, "there is nothing at " + std::string(PathOf(call)));
  }

  Reply Answer(const HttpCall& call, const Wake& wake) {
    std::string methods;
    return (this->*RouteOf(call, &methods)->answer)(call, wake);
  }

  Reply Live(const HttpCall&, const Wake&) { return JsonReply(200, {{"status", "ok"}}); }

  Reply Ready(const HttpCall&, const Wake&) {
    const Status status = engine_.Readiness();
    if (status.ok()) return JsonReply(200, {{"status", "ok"}});
    // Who has no key hears no more than that.
    return ErrorReply(ErrorShape::kOpenAi, 503, "not ready", {{"Retry-After", "5"}});
  }

  Reply Health(const HttpCall&, const Wake&) {
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

  Reply Version(const HttpCall&, const Wake&) {
    return JsonReply(200, {{"version", SourceVersion()}});
  }

  Reply OpenApi(const HttpCall&, const Wake&) { return HttpText(200, kJsonType, kOpenApi); }

  Reply Metrics(const HttpCall&, const Wake&) {
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
  Reply Cluster(const HttpCall&, const Wake&) {
    return HttpText(200, kJsonType, ClusterJson(model_, View()));
  }

  Reply Page(const HttpCall&, const Wake&) { return PageReply(); }

  Reply Models(const HttpCall&, const Wake&) {
    Json model = {{"id", model_.name},
                  {"object", "model"},
                  {"created", started_},
                  {"owned_by", "lockstep"},
                  {"root", model_.name},
                  {"parent", nullptr},
                  {"max_model_len", model_.max_model_len}};
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
    constexpr size_t kMost = 100;
    const std::lock_guard lock(mutex_);
    for (const std::string& note : notes) {
      if (told_.size() < kMost && told_.insert(note).second)
        log::Warning("HTTP requests: %s", note);
    }
  }

  template <typename Parse, typename Start>
  Reply Complete(const HttpCall& call, const Wake& wake, Parse parse, Start start) {
    const auto reply = [&]() -> StatusOr<Reply> {
      // Refusing must be cheap: before anything is read.
      LOCKSTEP_RETURN_IF_ERROR(engine_.Accepts());
      LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue body, Body(call));
      LOCKSTEP_RETURN_IF_ERROR(CheckModel(body, ShapeOf(call)));
      LOCKSTEP_ASSIGN_OR_RETURN(OpenAiRequest request, parse(body, text_, model_.max_model_len));
      TellNotes(request.notes);
      return start(engine_, source_, std::move(request), wake);
    };
    StatusOr<Reply> made = reply();
    return made.ok() ? std::move(*made) : ErrorReply(ShapeOf(call), made.status());
  }

  Reply ChatCompletions(const HttpCall& call, const Wake& wake) {
    return Complete(call, wake, ParseChatCompletion, StartChatReply);
  }
  Reply Completions(const HttpCall& call, const Wake& wake) {
    return Complete(call, wake, ParseCompletion, StartTextReply);
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
  Reply CompleteAsChat(const HttpCall& call, const Wake& wake, ToChat to_chat, Start start) {
    const auto parse = [&](const JsonValue& body, const ModelText&, int64_t max_model_len) {
      return ParseAsChat(to_chat, body, max_model_len);
    };
    return Complete(call, wake, parse, start);
  }

  Reply Messages(const HttpCall& call, const Wake& wake) {
    return CompleteAsChat(call, wake, ChatFromMessages, StartMessagesReply);
  }
  Reply Responses(const HttpCall& call, const Wake& wake) {
    return CompleteAsChat(call, wake, ChatFromResponses, StartResponsesReply);
  }

  StatusOr<Json> CountOf(const JsonValue& body) const {
    LOCKSTEP_RETURN_IF_ERROR(CheckModel(body, ErrorShape::kAnthropic));
    LOCKSTEP_ASSIGN_OR_RETURN(const OpenAiRequest request,
                              ParseAsChat(ChatFromMessages, body, INT64_MAX));
    return Json{{"input_tokens", request.requests[0].prompt.size()}};
  }
  Reply CountTokens(const HttpCall& call, const Wake&) { return Small(call, &Api::CountOf); }

  // The prompt of a conversation as text.
  StatusOr<std::string> Render(const JsonValue& body) const {
    LOCKSTEP_ASSIGN_OR_RETURN(ChatRequest chat, ParseConversation(body));
    LOCKSTEP_ASSIGN_OR_RETURN(const ChatFamily family, text_.RequireChatFamily());
    JsonFields fields(body);
    std::optional<bool> generation;
    LOCKSTEP_RETURN_IF_ERROR(fields.Read("add_generation_prompt", &generation));
    chat.add_generation_prompt = generation.value_or(true);
    return RenderChat(family, chat);
  }

  StatusOr<Json> TemplateOf(const JsonValue& body) const {
    LOCKSTEP_ASSIGN_OR_RETURN(std::string prompt, Render(body));
    return Json{{"prompt", std::move(prompt)}};
  }

  // vLLM's {"prompt"} or {"messages"}, llama.cpp's {"content"}.
  StatusOr<Json> TokensOf(const JsonValue& body) const {
    JsonFields fields(body);
    std::optional<std::string> prompt;
    std::optional<bool> with_text;
    LOCKSTEP_RETURN_IF_ERROR(fields.Read("content", &prompt));
    LOCKSTEP_RETURN_IF_ERROR(fields.Read("prompt", &prompt));
    LOCKSTEP_RETURN_IF_ERROR(fields.Read("return_token_strs", &with_text));
    if (!prompt.has_value()) {
      if (fields.Get("messages") == nullptr)
        return RequestError("prompt is missing (or content, or messages)");
      LOCKSTEP_ASSIGN_OR_RETURN(prompt, Render(body));
    }
    const std::vector<int32_t> ids = text_.tokenizer->Encode(*prompt);
    Json answer = {{"count", ids.size()}, {"max_model_len", model_.max_model_len}, {"tokens", ids}};
    if (with_text.value_or(false)) {
      answer["token_strs"] = Json::array();
      for (const int32_t id : ids) answer["token_strs"].push_back(text_.tokenizer->TokenText(id));
    }
    return answer;
  }

  StatusOr<Json> TextOf(const JsonValue& body) const {
    JsonFields fields(body);
    const JsonValue* tokens = nullptr;
    LOCKSTEP_RETURN_IF_ERROR(fields.ReadArray("tokens", &tokens));
    if (tokens == nullptr) return RequestError("tokens is missing");
    std::vector<int32_t> ids;
    for (const JsonValue& token : tokens->AsArray()) {
      const std::optional<int64_t> id = token.ToInt64();
      if (!id.has_value() || *id < 0 || *id >= model_.vocab_size) {
        return RequestError("tokens holds %s, but the model's ids are 0 .. %d", token.Dump(),
                            model_.vocab_size - 1);
      }
      ids.push_back(static_cast<int32_t>(*id));
    }
    const std::string text = text_.tokenizer->Decode(ids, false);
    return Json{{"prompt", text}, {"content", text}};
  }

  Reply Small(const HttpCall& call, StatusOr<Json> (Api::*make)(const JsonValue&) const) const {
    const StatusOr<JsonValue> body = Body(call);
    if (!body.ok()) return ErrorReply(ShapeOf(call), body.status());
    const StatusOr<Json> answer = (this->*make)(*body);
    return answer.ok() ? JsonReply(200, *answer) : ErrorReply(ShapeOf(call), answer.status());
  }
  Reply Tokenize(const HttpCall& call, const Wake&) { return Small(call, &Api::TokensOf); }
  Reply Detokenize(const HttpCall& call, const Wake&) { return Small(call, &Api::TextOf); }
  Reply ApplyTemplate(const HttpCall& call, const Wake&) { return Small(call, &Api::TemplateOf); }

  const ServedModel model_;
  const ModelText& text_;
  const ApiKeys* const keys_;
  Engine& engine_;
  const ReplySource source_;
  const int64_t started_ = UnixSeconds();
  mutable std::mutex mutex_;
  mutable std::set<std::string> told_;
  std::function<ClusterView()> cluster_;
  std::unique_ptr<HttpServer> server_;
};

std::span<const Api::Route> Api::Routes() {
  static constexpr Route kTable[] = {
      {"GET", "/", Access::kWithoutKey, &Api::Page},
      {"GET", "/cluster", Access::kWithKey, &Api::Cluster},
      {"GET", "/health/live", Access::kAnyone, &Api::Live},
      {"GET", "/health/ready", Access::kAnyone, &Api::Ready},
      {"GET", "/health", Access::kWithKey, &Api::Health},
      {"GET", "/ping", Access::kWithKey, &Api::Health},
      {"GET", "/version", Access::kWithKey, &Api::Version},
      {"GET", "/metrics", Access::kWithKey, &Api::Metrics},
      {"GET", "/openapi.json", Access::kWithKey, &Api::OpenApi},
      {"GET", "/v1/models", Access::kWithKey, &Api::Models},
      {"POST", "/v1/chat/completions", Access::kWithKey, &Api::ChatCompletions},
      {"POST", "/v1/completions", Access::kWithKey, &Api::Completions},
      {"POST", "/v1/responses", Access::kWithKey, &Api::Responses},
      {"POST", "/v1/messages", Access::kWithKey, &Api::Messages},
      {"POST", "/v1/messages/count_tokens", Access::kWithKey, &Api::CountTokens},
      {"POST", "/tokenize", Access::kWithKey, &Api::Tokenize},
      {"POST", "/detokenize", Access::kWithKey, &Api::Detokenize},
      {"POST", "/apply-template", Access::kWithKey, &Api::ApplyTemplate},
  };
  return kTable;
}

}  // namespace

std::vector<HttpRoute> HttpRoutes() { return Api::AllRoutes(); }

StatusOr<std::unique_ptr<HttpApi>> StartHttpApi(const HttpApiOptions& options,
                                                const ServedModel& model, const ModelText& text,
                                                const ApiKeys* keys, Engine& engine) {
  auto api = std::make_unique<Api>(model, text, keys, engine);
  LOCKSTEP_RETURN_IF_ERROR(api->Start(options));
  return StatusOr<std::unique_ptr<HttpApi>>(std::move(api));
}

}  // namespace lockstep
