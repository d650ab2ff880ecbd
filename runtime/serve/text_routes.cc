#include "runtime/serve/text_routes.h"

#include <optional>
#include <string>
#include <vector>

#include "runtime/serve/json_fields.h"
#include "runtime/serve/openai_request.h"

namespace lockstep {
namespace {

StatusOr<std::string> Render(const ModelText& text, const JsonValue& body) {
  LOCKSTEP_ASSIGN_OR_RETURN(ChatRequest chat, ParseConversation(body));
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatFamily family, text.RequireChatFamily());
  JsonFields fields(body);
  std::optional<bool> generation;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("add_generation_prompt", &generation));
  chat.add_generation_prompt = generation.value_or(true);
  return RenderChat(family, chat);
}

}  // namespace

StatusOr<Json> TokensOf(const ModelText& text, const ServedModel& model, const JsonValue& body) {
  JsonFields fields(body);
  std::optional<std::string> prompt;
  std::optional<bool> with_text;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("content", &prompt));
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("prompt", &prompt));
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("return_token_strs", &with_text));
  if (!prompt.has_value()) {
    if (fields.Get("messages") == nullptr)
      return RequestError("prompt is missing (or content, or messages)");
    LOCKSTEP_ASSIGN_OR_RETURN(prompt, Render(text, body));
  }
  const std::vector<int32_t> ids = text.tokenizer->Encode(*prompt);
  Json answer = {{"count", ids.size()}, {"max_model_len", model.max_model_len}, {"tokens", ids}};
  if (with_text.value_or(false)) {
    answer["token_strs"] = Json::array();
    for (const int32_t id : ids) answer["token_strs"].push_back(text.tokenizer->TokenText(id));
  }
  return answer;
}

StatusOr<Json> TextOf(const ModelText& text, const ServedModel& model, const JsonValue& body) {
  JsonFields fields(body);
  const JsonValue* tokens = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadArray("tokens", &tokens));
  if (tokens == nullptr) return RequestError("tokens is missing");
  std::vector<int32_t> ids;
  for (const JsonValue& token : tokens->AsArray()) {
    const std::optional<int64_t> id = token.ToInt64();
    if (!id.has_value() || *id < 0 || *id >= model.vocab_size) {
      return RequestError("tokens holds %s, but the model's ids are 0 .. %d", token.Dump(),
                          model.vocab_size - 1);
    }
    ids.push_back(static_cast<int32_t>(*id));
  }
  const std::string decoded = text.tokenizer->Decode(ids, false);
  return Json{{"prompt", decoded}, {"content", decoded}};
}

StatusOr<Json> RenderedOf(const ModelText& text, const JsonValue& body) {
  LOCKSTEP_ASSIGN_OR_RETURN(std::string prompt, Render(text, body));
  return Json{{"prompt", std::move(prompt)}};
}

}  // namespace lockstep
