#include "runtime/serve/responses_request.h"

#include <optional>
#include <utility>

#include "runtime/serve/json_fields.h"

namespace lockstep {
namespace {

JsonValue Text(std::string text) { return JsonValue::String(std::move(text)); }

Status NotKept(std::string_view field, std::string_view why) {
  return RequestError("%s: %s", std::string(field), std::string(why));
}

// The text of a string or of parts that are all text, whatever the API calls them there.
StatusOr<std::string> PlainText(const JsonValue& content, const std::string& where) {
  if (content.is_string()) return content.AsString();
  if (!content.is_array())
    return RequestError("%s is %s, but must be a string or an array of parts", where,
                        content.KindName());
  std::string text;
  for (size_t i = 0; i < content.AsArray().size(); ++i) {
    const JsonValue* type = content.AsArray()[i].Find("type");
    const JsonValue* part = content.AsArray()[i].Find("text");
    if (type == nullptr || !type->is_string() || part == nullptr || !part->is_string()) {
      return RequestError(
          "%s[%d] is%s no text, and this model reads text only", where, i,
          type != nullptr && type->is_string() ? " of type '" + type->AsString() + "'," : "");
    }
    text += part->AsString();
  }
  return text;
}

// Items become messages: what an assistant thought, said and called in one turn is one.
class Conversation {
 public:
  Status Add(const JsonValue& item, const std::string& where) {
    if (!item.is_object())
      return RequestError("%s is %s, but must be an object", where, item.KindName());
    JsonFields fields(item, where + ".");
    std::optional<std::string> type;
    LOCKSTEP_RETURN_IF_ERROR(fields.Read("type", &type));
    if (type.value_or("message") == "message") return AddMessage(fields, where);
    if (*type == "reasoning") return AddReasoning(fields, where);
    if (*type == "function_call") return AddCall(fields);
    if (*type == "function_call_output") return AddOutput(fields, where);
    return RequestError("%s is of type '%s', which is not known here", where, *type);
  }

  void AddText(const char* role, std::string text) {
    EndTurn();
    messages_.AsArray().push_back(
        JsonValue::MakeObject({{"role", Text(role)}, {"content", Text(std::move(text))}}));
  }

  JsonValue Take() {
    EndTurn();
    return std::move(messages_);
  }

 private:
  static Status ReadText(JsonFields& fields, const char* name, std::string* text) {
    std::optional<std::string> read;
    LOCKSTEP_RETURN_IF_ERROR(fields.Read(name, &read));
    if (!read.has_value()) return RequestError("%s is missing", fields.Name(name));
    *text = *std::move(read);
    return OkStatus();
  }

  Status AddMessage(JsonFields& fields, const std::string& where) {
    std::string role;
    LOCKSTEP_RETURN_IF_ERROR(ReadText(fields, "role", &role));
    const JsonValue* content = fields.Get("content");
    if (content == nullptr) return RequestError("%s.content is missing", where);
    LOCKSTEP_ASSIGN_OR_RETURN(std::string text, PlainText(*content, where + ".content"));
    if (role != "assistant") {
      AddText(role.c_str(), std::move(text));
      return OkStatus();
    }
    if (said_) EndTurn();
    turn_.Set("content", Text(std::move(text)));
    begun_ = said_ = true;
    return OkStatus();
  }

  Status AddReasoning(JsonFields& fields, const std::string& where) {
    if (begun_) EndTurn();
    const JsonValue* content = fields.Get("content");
    if (content == nullptr) return OkStatus();
    LOCKSTEP_ASSIGN_OR_RETURN(std::string text, PlainText(*content, where + ".content"));
    turn_.Set("reasoning_content", Text(std::move(text)));
    begun_ = true;
    return OkStatus();
  }

  Status AddCall(JsonFields& fields) {
    std::string id, name, arguments;
    LOCKSTEP_RETURN_IF_ERROR(ReadText(fields, "call_id", &id));
    LOCKSTEP_RETURN_IF_ERROR(ReadText(fields, "name", &name));
    LOCKSTEP_RETURN_IF_ERROR(ReadText(fields, "arguments", &arguments));
    JsonValue function = JsonValue::MakeObject(
        {{"name", Text(std::move(name))}, {"arguments", Text(std::move(arguments))}});
    if (turn_.Find("tool_calls") == nullptr) turn_.Set("tool_calls", JsonValue::MakeArray());
    turn_.Find("tool_calls")
        ->AsArray()
        .push_back(JsonValue::MakeObject({{"id", Text(std::move(id))},
                                          {"type", Text("function")},
                                          {"function", std::move(function)}}));
    begun_ = said_ = true;
    return OkStatus();
  }

  Status AddOutput(JsonFields& fields, const std::string& where) {
    std::string id;
    LOCKSTEP_RETURN_IF_ERROR(ReadText(fields, "call_id", &id));
    const JsonValue* output = fields.Get("output");
    if (output == nullptr) return RequestError("%s.output is missing", where);
    LOCKSTEP_ASSIGN_OR_RETURN(std::string text, PlainText(*output, where + ".output"));
    AddText("tool", std::move(text));
    messages_.AsArray().back().Set("tool_call_id", Text(std::move(id)));
    return OkStatus();
  }

  static JsonValue EmptyTurn() {
    return JsonValue::MakeObject({{"role", Text("assistant")}, {"content", Text("")}});
  }

  void EndTurn() {
    if (begun_) messages_.AsArray().push_back(std::move(turn_));
    turn_ = EmptyTurn();
    begun_ = said_ = false;
  }

  JsonValue messages_ = JsonValue::MakeArray();
  JsonValue turn_ = EmptyTurn();  // of the assistant
  bool begun_ = false;            // it has something
  bool said_ = false;             // it has more than reasoning
};

StatusOr<JsonValue> ToMessages(JsonFields& fields) {
  Conversation conversation;
  std::optional<std::string> instructions;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("instructions", &instructions));
  if (instructions.has_value()) conversation.AddText("system", *std::move(instructions));
  const JsonValue* input = fields.Get("input");
  if (input == nullptr) return RequestError("input is missing");
  if (input->is_string()) {
    conversation.AddText("user", input->AsString());
    return conversation.Take();
  }
  if (!input->is_array())
    return RequestError("input is %s, but must be a string or an array", input->KindName());
  for (size_t i = 0; i < input->AsArray().size(); ++i) {
    LOCKSTEP_RETURN_IF_ERROR(
        conversation.Add(input->AsArray()[i], absl::StrFormat("input[%d]", i)));
  }
  return conversation.Take();
}

Status AddTools(JsonFields& fields, JsonValue* chat) {
  const JsonValue* given = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadArray("tools", &given));
  if (given == nullptr) return OkStatus();
  JsonValue tools = JsonValue::MakeArray();
  for (size_t i = 0; i < given->AsArray().size(); ++i) {
    const JsonValue& tool = given->AsArray()[i];
    const JsonValue* type = tool.Find("type");
    if (type == nullptr || !type->is_string() || type->AsString() != "function") {
      return RequestError(
          "tools[%d] must be of type function: tools that OpenAI runs do not exist here", i);
    }
    JsonValue function = JsonValue::MakeObject();
    for (const char* name : {"name", "description", "parameters", "strict"}) {
      if (const JsonValue* value = tool.Find(name)) function.Set(name, *value);
    }
    tools.AsArray().push_back(
        JsonValue::MakeObject({{"type", Text("function")}, {"function", std::move(function)}}));
  }
  chat->Set("tools", std::move(tools));
  return OkStatus();
}

// Fields that would need a memory of earlier responses, or work after the answer.
Status RefuseStored(JsonFields& fields) {
  for (const char* name : {"previous_response_id", "conversation", "prompt"}) {
    if (fields.Get(name) != nullptr)
      return NotKept(name, "nothing is stored here; send the whole conversation as input");
  }
  std::optional<bool> background;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("background", &background));
  if (background.value_or(false)) return NotKept("background", "answers are given at once");
  return OkStatus();
}

}  // namespace

StatusOr<JsonValue> ChatFromResponses(const JsonValue& body, std::vector<std::string>* notes) {
  JsonFields fields(body);
  JsonValue chat = JsonValue::MakeObject();
  LOCKSTEP_RETURN_IF_ERROR(RefuseStored(fields));
  LOCKSTEP_ASSIGN_OR_RETURN(JsonValue messages, ToMessages(fields));
  chat.Set("messages", std::move(messages));
  LOCKSTEP_RETURN_IF_ERROR(AddTools(fields, &chat));
  static constexpr std::pair<const char*, const char*> kSame[] = {
      {"model", "model"},
      {"temperature", "temperature"},
      {"top_p", "top_p"},
      {"stream", "stream"},
      {"tool_choice", "tool_choice"},
      {"parallel_tool_calls", "parallel_tool_calls"},
      {"max_output_tokens", "max_tokens"},
      // Of vLLM and Z.ai.
      {"seed", "seed"},
      {"priority", "priority"},
      {"thinking", "thinking"},
      {"thinking_budget", "thinking_budget"},
      {"thinking_token_budget", "thinking_token_budget"},
      {"chat_template_kwargs", "chat_template_kwargs"}};
  for (const auto& [name, chat_name] : kSame) {
    if (const JsonValue* value = fields.Get(name)) chat.Set(chat_name, *value);
  }
  const JsonValue *reasoning = nullptr, *text = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("reasoning", &reasoning));
  if (reasoning != nullptr) {
    if (const JsonValue* effort = reasoning->Find("effort")) chat.Set("reasoning_effort", *effort);
  }
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("text", &text));
  if (text != nullptr) {
    if (const JsonValue* format = text->Find("format")) chat.Set("response_format", *format);
  }
  for (const char* known :
       {"store", "metadata", "include", "truncation", "user", "service_tier", "prompt_cache_key",
        "safety_identifier", "stream_options", "client_metadata"}) {
    (void)fields.Get(known);
  }
  for (const std::string& name : fields.Unread()) notes->push_back(NoMeaning(name));
  return chat;
}

}  // namespace lockstep
