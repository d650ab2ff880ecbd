#include "runtime/serve/anthropic_request.h"

#include <optional>
#include <utility>

#include "runtime/serve/json_fields.h"

namespace lockstep {
namespace {

JsonValue Text(std::string text) { return JsonValue::String(std::move(text)); }

JsonValue Message(const char* role, JsonValue content) {
  return JsonValue::MakeObject({{"role", Text(role)}, {"content", std::move(content)}});
}

// A block's kind, and the block as an object of named fields.
StatusOr<std::string> TypeOf(const JsonValue& block, const std::string& where) {
  if (!block.is_object())
    return RequestError("%s is %s, but must be an object", where, block.KindName());
  JsonFields fields(block, where + ".");
  std::optional<std::string> type;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("type", &type));
  if (!type.has_value()) return RequestError("%s.type is missing", where);
  return *type;
}

StatusOr<std::string> StringOf(const JsonValue& block, const char* name, const std::string& where) {
  JsonFields fields(block, where + ".");
  std::optional<std::string> text;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read(name, &text));
  if (!text.has_value()) return RequestError("%s.%s is missing", where, name);
  return *text;
}

// The text of a string or of blocks that are all text.
StatusOr<std::string> PlainText(const JsonValue& content, const std::string& where) {
  if (content.is_string()) return content.AsString();
  if (!content.is_array())
    return RequestError("%s is %s, but must be a string or an array of blocks", where,
                        content.KindName());
  std::string text;
  for (size_t i = 0; i < content.AsArray().size(); ++i) {
    const std::string at = absl::StrFormat("%s[%d]", where, i);
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string type, TypeOf(content.AsArray()[i], at));
    if (type != "text")
      return RequestError("%s is of type '%s', but this model reads text only", at, type);
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string part, StringOf(content.AsArray()[i], "text", at));
    if (!text.empty()) text += '\n';
    text += part;
  }
  return text;
}

Status AddSystem(const JsonValue& system, JsonValue::Array* messages,
                 std::vector<std::string>* notes) {
  constexpr std::string_view kNotForTheModel = "x-anthropic-";
  if (!system.is_array()) {
    LOCKSTEP_ASSIGN_OR_RETURN(std::string text, PlainText(system, "system"));
    messages->push_back(Message("system", Text(std::move(text))));
    return OkStatus();
  }
  JsonValue kept = JsonValue::MakeArray();
  for (const JsonValue& block : system.AsArray()) {
    const JsonValue* text = block.Find("text");
    if (text != nullptr && text->is_string() && text->AsString().starts_with(kNotForTheModel)) {
      notes->push_back("system blocks that begin with x-anthropic- are left out");
      continue;
    }
    kept.AsArray().push_back(block);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(std::string text, PlainText(kept, "system"));
  if (!text.empty()) messages->push_back(Message("system", Text(std::move(text))));
  return OkStatus();
}

// Results of tools are messages of their own, before what the user says beside them.
Status AddUser(const JsonValue& content, const std::string& where, JsonValue::Array* messages) {
  if (content.is_string()) {
    messages->push_back(Message("user", content));
    return OkStatus();
  }
  JsonValue said = JsonValue::MakeArray();
  for (size_t i = 0; i < content.AsArray().size(); ++i) {
    const JsonValue& block = content.AsArray()[i];
    const std::string at = absl::StrFormat("%s[%d]", where, i);
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string type, TypeOf(block, at));
    if (type != "tool_result") {
      said.AsArray().push_back(block);
      continue;
    }
    LOCKSTEP_ASSIGN_OR_RETURN(std::string id, StringOf(block, "tool_use_id", at));
    const JsonValue* result = block.Find("content");
    std::string text;
    if (result != nullptr && !result->is_null()) {
      LOCKSTEP_ASSIGN_OR_RETURN(text, PlainText(*result, at + ".content"));
    }
    JsonValue message = Message("tool", Text(std::move(text)));
    message.Set("tool_call_id", Text(std::move(id)));
    messages->push_back(std::move(message));
  }
  if (said.AsArray().empty()) return OkStatus();
  LOCKSTEP_ASSIGN_OR_RETURN(std::string text, PlainText(said, where));
  messages->push_back(Message("user", Text(std::move(text))));
  return OkStatus();
}

StatusOr<JsonValue> ToolCall(const JsonValue& block, const std::string& at) {
  LOCKSTEP_ASSIGN_OR_RETURN(std::string id, StringOf(block, "id", at));
  LOCKSTEP_ASSIGN_OR_RETURN(std::string name, StringOf(block, "name", at));
  JsonFields fields(block, at + ".");
  const JsonValue* input = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("input", &input));
  JsonValue function =
      JsonValue::MakeObject({{"name", Text(std::move(name))},
                             {"arguments", input == nullptr ? JsonValue::MakeObject() : *input}});
  return JsonValue::MakeObject(
      {{"id", Text(std::move(id))}, {"type", Text("function")}, {"function", std::move(function)}});
}

Status AddAssistant(const JsonValue& content, const std::string& where,
                    JsonValue::Array* messages) {
  if (content.is_string()) {
    messages->push_back(Message("assistant", content));
    return OkStatus();
  }
  std::string text, thinking;
  JsonValue calls = JsonValue::MakeArray();
  for (size_t i = 0; i < content.AsArray().size(); ++i) {
    const JsonValue& block = content.AsArray()[i];
    const std::string at = absl::StrFormat("%s[%d]", where, i);
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string type, TypeOf(block, at));
    if (type == "text") {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::string part, StringOf(block, "text", at));
      text += part;
    } else if (type == "thinking") {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::string part, StringOf(block, "thinking", at));
      thinking += part;
    } else if (type == "tool_use") {
      LOCKSTEP_ASSIGN_OR_RETURN(JsonValue call, ToolCall(block, at));
      calls.AsArray().push_back(std::move(call));
    } else if (type != "redacted_thinking") {
      return RequestError("%s is of type '%s', which an assistant's message cannot have here", at,
                          type);
    }
  }
  JsonValue message = Message("assistant", Text(std::move(text)));
  if (!thinking.empty()) message.Set("reasoning_content", Text(std::move(thinking)));
  if (!calls.AsArray().empty()) message.Set("tool_calls", std::move(calls));
  messages->push_back(std::move(message));
  return OkStatus();
}

StatusOr<JsonValue> ToMessages(JsonFields& fields, std::vector<std::string>* notes) {
  const JsonValue* given = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadArray("messages", &given));
  if (given == nullptr || given->AsArray().empty())
    return RequestError("messages is missing or empty");
  JsonValue messages = JsonValue::MakeArray();
  if (const JsonValue* system = fields.Get("system"))
    LOCKSTEP_RETURN_IF_ERROR(AddSystem(*system, &messages.AsArray(), notes));
  for (size_t i = 0; i < given->AsArray().size(); ++i) {
    const JsonValue& message = given->AsArray()[i];
    const std::string where = absl::StrFormat("messages[%d]", i);
    if (!message.is_object())
      return RequestError("%s is %s, but must be an object", where, message.KindName());
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string role, StringOf(message, "role", where));
    const JsonValue* content = message.Find("content");
    if (content == nullptr || !(content->is_string() || content->is_array()))
      return RequestError("%s.content must be a string or an array of blocks", where);
    if (role == "user") {
      LOCKSTEP_RETURN_IF_ERROR(AddUser(*content, where + ".content", &messages.AsArray()));
    } else if (role == "assistant") {
      LOCKSTEP_RETURN_IF_ERROR(AddAssistant(*content, where + ".content", &messages.AsArray()));
    } else if (role == "system") {
      LOCKSTEP_RETURN_IF_ERROR(AddSystem(*content, &messages.AsArray(), notes));
    } else {
      return RequestError("%s.role is '%s', but must be user or assistant", where, role);
    }
  }
  return messages;
}

Status AddTools(JsonFields& fields, JsonValue* chat) {
  const JsonValue* given = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadArray("tools", &given));
  if (given != nullptr) {
    JsonValue tools = JsonValue::MakeArray();
    for (size_t i = 0; i < given->AsArray().size(); ++i) {
      const JsonValue& tool = given->AsArray()[i];
      const std::string where = absl::StrFormat("tools[%d]", i);
      if (!tool.is_object())
        return RequestError("%s is %s, but must be an object", where, tool.KindName());
      LOCKSTEP_ASSIGN_OR_RETURN(std::string name, StringOf(tool, "name", where));
      JsonFields inner(tool, where + ".");
      const JsonValue* schema = nullptr;
      LOCKSTEP_RETURN_IF_ERROR(inner.ReadObject("input_schema", &schema));
      if (schema == nullptr) {
        return RequestError(
            "%s.input_schema is missing: tools that Anthropic runs do not exist here", where);
      }
      JsonValue function = JsonValue::MakeObject({{"name", Text(std::move(name))}});
      if (const JsonValue* description = inner.Get("description"))
        function.Set("description", *description);
      function.Set("parameters", *schema);
      if (const JsonValue* strict = inner.Get("strict")) function.Set("strict", *strict);
      tools.AsArray().push_back(
          JsonValue::MakeObject({{"type", Text("function")}, {"function", std::move(function)}}));
    }
    chat->Set("tools", std::move(tools));
  }
  const JsonValue* choice = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("tool_choice", &choice));
  if (choice == nullptr) return OkStatus();
  LOCKSTEP_ASSIGN_OR_RETURN(std::string type, TypeOf(*choice, "tool_choice"));
  if (type == "tool") {
    LOCKSTEP_ASSIGN_OR_RETURN(std::string name, StringOf(*choice, "name", "tool_choice"));
    chat->Set("tool_choice",
              JsonValue::MakeObject({{"type", Text("function")}, {"name", Text(std::move(name))}}));
  } else {
    chat->Set("tool_choice", Text(type == "any" ? "required" : std::move(type)));
  }
  JsonFields inner(*choice, "tool_choice.");
  std::optional<bool> single;
  LOCKSTEP_RETURN_IF_ERROR(inner.Read("disable_parallel_tool_use", &single));
  if (single.has_value()) chat->Set("parallel_tool_calls", JsonValue::Bool(!*single));
  return OkStatus();
}

// output_config.format, or the older output_format.
Status AddFormat(JsonFields& fields, JsonValue* chat) {
  const JsonValue *config = nullptr, *format = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("output_format", &format));
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("output_config", &config));
  if (config != nullptr && config->Find("format") != nullptr) format = config->Find("format");
  if (format != nullptr) chat->Set("response_format", *format);
  return OkStatus();
}

}  // namespace

StatusOr<JsonValue> ChatFromMessages(const JsonValue& body, std::vector<std::string>* notes) {
  JsonFields fields(body);
  JsonValue chat = JsonValue::MakeObject();
  LOCKSTEP_ASSIGN_OR_RETURN(JsonValue messages, ToMessages(fields, notes));
  chat.Set("messages", std::move(messages));
  LOCKSTEP_RETURN_IF_ERROR(AddTools(fields, &chat));
  LOCKSTEP_RETURN_IF_ERROR(AddFormat(fields, &chat));
  static constexpr std::pair<const char*, const char*> kSame[] = {
      {"model", "model"},         {"max_tokens", "max_tokens"}, {"temperature", "temperature"},
      {"top_p", "top_p"},         {"top_k", "top_k"},           {"stream", "stream"},
      {"stop_sequences", "stop"}, {"priority", "priority"}};
  for (const auto& [name, chat_name] : kSame) {
    if (const JsonValue* value = fields.Get(name)) chat.Set(chat_name, *value);
  }
  // Thinking is asked for here; in OpenAI's API the template decides.
  const JsonValue* thinking = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("thinking", &thinking));
  std::string type = "disabled";
  JsonValue how = JsonValue::MakeObject();
  if (thinking != nullptr) {
    LOCKSTEP_ASSIGN_OR_RETURN(type, TypeOf(*thinking, "thinking"));
    if (type == "adaptive") type = "enabled";
    if (const JsonValue* budget = thinking->Find("budget_tokens"))
      how.Set("budget_tokens", *budget);
  }
  how.Set("type", Text(std::move(type)));
  chat.Set("thinking", std::move(how));
  for (const char* known : {"metadata", "service_tier", "container", "betas"})
    (void)fields.Get(known);
  for (const std::string& name : fields.Unread()) notes->push_back(NoMeaning(name));
  return chat;
}

}  // namespace lockstep
