#include "runtime/serve/anthropic_reply.h"

#include <string>
#include <utility>

#include "runtime/engine/defaults.h"
#include "runtime/serve/json_out.h"
#include "runtime/serve/single_reply.h"

namespace lockstep {
namespace {

using Kind = ReplyEvent::Kind;

// A message's content, block by block; in streams also as events.
class MessagesReply final : public SingleReply {
 public:
  MessagesReply(Engine& engine, const ReplySource& source, const OpenAiRequest& request)
      : SingleReply(engine, ErrorShape::kAnthropic, *source.tokenizer, request),
        model_(source.model),
        id_(absl::StrFormat("%016x", FreshSeed())) {}

  std::string_view Sign() override {
    return stream() ? "event: ping\ndata: {\"type\": \"ping\"}\n\n" : "";
  }

 private:
  void Tell(const char* type, const Json& members) {
    if (!stream()) return;
    Json event = {{"type", type}};
    event.update(members);
    AddEvent(type, Dump(event));
  }

  void Begin() override {
    Tell("message_start", {{"message", Message()}});
    Tell("ping", Json::object());
  }

  void Add(const ReplyEvent& event) override {
    if (event.kind == Kind::kToolCall) {
      const Json input = Json::parse(event.arguments.Dump(), nullptr, false);
      OpenBlock({{"type", "tool_use"},
                 {"id", absl::StrFormat("toolu_%s_%d", id_, calls_++)},
                 {"name", event.name},
                 {"input", Json::object()}});
      content_.back()["input"] = input.is_object() ? input : Json::object();
      AddDelta({{"type", "input_json_delta"}, {"partial_json", Dump(content_.back()["input"])}});
      return Close();
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
    Close();
    Tell("content_block_start", {{"index", content_.size()}, {"content_block", block}});
    content_.push_back(std::move(block));
    open_ = true;
  }

  void AddDelta(Json delta) {
    Tell("content_block_delta", {{"index", content_.size() - 1}, {"delta", std::move(delta)}});
  }

  void Close() override {
    if (!open_) return;
    open_ = false;
    if (content_.back()["type"] == "thinking") {
      // Clients give thinking back with what signed it. Nobody checks it here.
      content_.back()["signature"] = "unsigned";
      AddDelta({{"type", "signature_delta"}, {"signature", "unsigned"}});
    }
    Tell("content_block_stop", {{"index", content_.size() - 1}});
  }

  void End() override {
    Tell("message_delta", {{"delta", Stop()}, {"usage", UsageText()}});
    Tell("message_stop", Json::object());
  }

  void Fail(const Status& error) override {
    AddEvent("error", ErrorText(ErrorShape::kAnthropic, error));
  }

  std::string Whole() const override { return Dump(Message()); }

  Json Stop() const {
    if (!finished()) return {{"stop_reason", nullptr}, {"stop_sequence", nullptr}};
    const std::string& stop = summary().stop_text;
    const char* reason = "end_turn";
    if (calls_ > 0) reason = "tool_use";
    if (!stop.empty()) reason = "stop_sequence";
    if (summary().reason == FinishReason::kLength) reason = "max_tokens";
    return {{"stop_reason", reason}, {"stop_sequence", stop.empty() ? Json() : Json(stop)}};
  }

  Json UsageText() const {
    const Usage now = usage();
    return {{"input_tokens", now.prompt_tokens - now.cached_tokens},
            {"cache_creation_input_tokens", 0},
            {"cache_read_input_tokens", now.cached_tokens},
            {"output_tokens", now.completion_tokens}};
  }

  Json Message() const {
    Json message = {{"id", "msg_" + id_},
                    {"type", "message"},
                    {"role", "assistant"},
                    {"model", model_},
                    {"content", content_}};
    message.update(Stop());
    message["usage"] = UsageText();
    return message;
  }

  const std::string model_;
  const std::string id_;
  Json content_ = Json::array();
  bool open_ = false;  // the last block may grow
  int calls_ = 0;
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
