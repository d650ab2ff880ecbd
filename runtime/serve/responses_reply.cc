#include "runtime/serve/responses_reply.h"

#include <string>
#include <utility>

#include "runtime/engine/defaults.h"
#include "runtime/serve/json_out.h"
#include "runtime/serve/single_reply.h"

namespace lockstep {
namespace {

using Kind = ReplyEvent::Kind;

// A response's output, item by item; in streams also as events.
class ResponsesReply final : public SingleReply {
 public:
  ResponsesReply(Engine& engine, const ReplySource& source, const OpenAiRequest& request)
      : SingleReply(engine, ErrorShape::kOpenAi, *source.tokenizer, request),
        model_(source.model),
        id_(absl::StrFormat("%016x", FreshSeed())),
        created_(UnixSeconds()) {}

  std::string_view Sign() override { return stream() ? ": still at work\n\n" : ""; }

 private:
  void Tell(const char* type, const Json& members) {
    if (!stream()) return;
    Json event = {{"type", type}, {"sequence_number", sequence_++}};
    event.update(members);
    AddEvent(type, Dump(event));
  }
  // An event of the last item.
  void TellOfItem(const char* type, const Json& members) {
    Json all = {{"item_id", output_.back()["id"]}, {"output_index", output_.size() - 1}};
    all.update(members);
    Tell(type, all);
  }

  void Begin() override {
    Tell("response.created", {{"response", Response("in_progress")}});
    Tell("response.in_progress", {{"response", Response("in_progress")}});
  }

  void Add(const ReplyEvent& event) override {
    if (event.kind == Kind::kToolCall) return AddCall(event);
    const bool reasoning = event.kind == Kind::kReasoning;
    if (!open_ || (output_.back()["type"] == "reasoning") != reasoning) OpenText(reasoning);
    std::string& text = output_.back()["content"][0]["text"].get_ref<std::string&>();
    text += event.text;
    Json delta = {{"content_index", 0}, {"delta", event.text}};
    if (!reasoning) delta["logprobs"] = Json::array();
    TellOfItem(reasoning ? "response.reasoning_text.delta" : "response.output_text.delta", delta);
  }

  Json Item(const char* prefix, const char* type) const {
    return {{"id", absl::StrFormat("%s_%s_%d", prefix, id_, output_.size())},
            {"type", type},
            {"status", "in_progress"}};
  }

  void Open(Json item) {
    Close();
    open_ = true;
    Tell("response.output_item.added", {{"output_index", output_.size()}, {"item", item}});
    output_.push_back(std::move(item));
  }

  void OpenText(bool reasoning) {
    Json item = reasoning ? Item("rs", "reasoning") : Item("msg", "message");
    if (reasoning) item["summary"] = Json::array();
    if (!reasoning) item["role"] = "assistant";
    item["content"] = Json::array();
    Open(std::move(item));
    Json part = {{"type", reasoning ? "reasoning_text" : "output_text"}, {"text", ""}};
    if (!reasoning) part["annotations"] = Json::array();
    output_.back()["content"].push_back(part);
    if (!reasoning)
      TellOfItem("response.content_part.added", {{"content_index", 0}, {"part", part}});
  }

  void AddCall(const ReplyEvent& event) {
    Json item = Item("fc", "function_call");
    item["call_id"] = absl::StrFormat("call_%s_%d", id_, calls_++);
    item["name"] = event.name;
    item["arguments"] = "";
    Open(std::move(item));
    const std::string arguments = event.arguments.Dump();
    output_.back()["arguments"] = arguments;
    TellOfItem("response.function_call_arguments.delta", {{"delta", arguments}});
    TellOfItem("response.function_call_arguments.done",
               {{"name", event.name}, {"arguments", arguments}});
    Close();
  }

  void Close() override {
    if (!open_) return;
    open_ = false;
    Json& item = output_.back();
    item["status"] = "completed";
    if (item["type"] != "function_call") {
      const Json& part = item["content"][0];
      Json done = {{"content_index", 0}, {"text", part["text"]}};
      if (item["type"] == "reasoning") {
        TellOfItem("response.reasoning_text.done", done);
      } else {
        done["logprobs"] = Json::array();
        TellOfItem("response.output_text.done", done);
        TellOfItem("response.content_part.done", {{"content_index", 0}, {"part", part}});
      }
    }
    Tell("response.output_item.done", {{"output_index", output_.size() - 1}, {"item", item}});
  }

  const char* EndStatus() const {
    return summary().reason == FinishReason::kLength ? "incomplete" : "completed";
  }

  void End() override {
    const std::string status = EndStatus();
    Tell(status == "completed" ? "response.completed" : "response.incomplete",
         {{"response", Response(status)}});
  }

  void Fail(const Status& error) override {
    Json response = Response("failed");
    response["error"] = {{"code", "server_error"}, {"message", MessageOf(error)}};
    Tell("response.failed", {{"response", std::move(response)}});
  }

  std::string Whole() const override { return Dump(Response(EndStatus())); }

  Json Response(const std::string& status) const {
    Json response = {
        {"id", "resp_" + id_},   {"object", "response"},   {"created_at", created_},
        {"status", status},      {"error", nullptr},       {"incomplete_details", nullptr},
        {"model", model_},       {"output", output_},      {"parallel_tool_calls", true},
        {"tool_choice", "auto"}, {"tools", Json::array()}, {"metadata", Json::object()},
        {"usage", nullptr}};
    if (status == "incomplete") response["incomplete_details"] = {{"reason", "max_output_tokens"}};
    if (finished()) {
      const Usage now = usage();
      response["usage"] = {{"input_tokens", now.prompt_tokens},
                           {"input_tokens_details", {{"cached_tokens", now.cached_tokens}}},
                           {"output_tokens", now.completion_tokens},
                           {"output_tokens_details", {{"reasoning_tokens", reasoning_tokens()}}},
                           {"total_tokens", now.prompt_tokens + now.completion_tokens}};
    }
    return response;
  }

  const std::string model_;
  const std::string id_;
  const int64_t created_;
  Json output_ = Json::array();
  bool open_ = false;  // the last item may grow
  int calls_ = 0;
  int sequence_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<HttpReply>> StartResponsesReply(Engine& engine, const ReplySource& source,
                                                         OpenAiRequest request,
                                                         const std::function<void()>& wake) {
  auto reply = std::make_unique<ResponsesReply>(engine, source, request);
  LOCKSTEP_RETURN_IF_ERROR(reply->Submit(std::move(request), wake));
  return StatusOr<std::unique_ptr<HttpReply>>(std::move(reply));
}

}  // namespace lockstep
