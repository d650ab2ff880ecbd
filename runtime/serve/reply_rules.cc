#include "runtime/serve/reply_rules.h"

#include <optional>
#include <string>
#include <utility>

namespace lockstep {
namespace {

JsonValue AnyObject() { return JsonValue::MakeObject({{"type", JsonValue::String("object")}}); }

Status ReadResponseFormat(JsonFields& fields, ReplyRules* rules) {
  const JsonValue* format = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("response_format", &format));
  if (format == nullptr) return OkStatus();
  JsonFields inner(*format, "response_format.");
  std::optional<std::string> type;
  LOCKSTEP_RETURN_IF_ERROR(inner.Read("type", &type));
  if (!type.has_value()) return RequestError("response_format.type is missing");
  if (*type == "text") return OkStatus();
  if (*type != "json_object" && *type != "json_schema") {
    return RequestError(
        "response_format.type is '%s', but must be one of text, json_object, json_schema", *type);
  }
  const JsonValue *named = nullptr, *schema = inner.Get("schema");
  rules->schema_name = "response_format.schema";
  if (*type == "json_schema") {
    LOCKSTEP_RETURN_IF_ERROR(inner.ReadObject("json_schema", &named));
    if (named != nullptr) {
      schema = named->Find("schema");
      rules->schema_name = "response_format.json_schema.schema";
    }
    if (schema == nullptr) return RequestError("response_format.json_schema.schema is missing");
  }
  rules->schema = schema != nullptr ? *schema : AnyObject();
  return OkStatus();
}

// A schema, or its text.
Status TakeSchema(const JsonValue* value, const char* name, ReplyRules* rules) {
  if (value == nullptr) return OkStatus();
  if (!rules->schema.is_null())
    return RequestError("%s: the reply's schema is given twice", std::string(name));
  rules->schema_name = name;
  rules->schema = *value;
  if (!value->is_string()) return OkStatus();
  StatusOr<JsonValue> parsed = ParseJson(value->AsString(), kStrangersJson);
  if (!parsed.ok())
    return RequestError("%s is not JSON: %s", std::string(name), MessageOf(parsed.status()));
  rules->schema = *std::move(parsed);
  return OkStatus();
}

Status ReadToolChoice(JsonFields& fields, ReplyRules* rules) {
  const JsonValue* choice = fields.Get("tool_choice");
  if (choice == nullptr) return OkStatus();
  if (choice->is_string()) {
    const std::string& word = choice->AsString();
    if (word == "required") rules->calls = ReplyRules::Calls::kRequired;
    if (word == "required" || word == "auto" || word == "none") return OkStatus();
  } else if (const JsonValue* type = choice->Find("type");
             type != nullptr && *type == JsonValue::String("function")) {
    const JsonValue* function = choice->Find("function");
    const JsonValue* name = (function != nullptr ? *function : *choice).Find("name");
    if (name != nullptr && name->is_string()) {
      rules->calls = ReplyRules::Calls::kNamed;
      rules->tool = name->AsString();
      return OkStatus();
    }
  }
  return RequestError(
      "tool_choice must be auto, none, required, or {\"type\": \"function\", \"function\": "
      "{\"name\": ...}}");
}

}  // namespace

Status ReadSchema(JsonFields& fields, ReplyRules* rules) {
  LOCKSTEP_RETURN_IF_ERROR(ReadResponseFormat(fields, rules));
  LOCKSTEP_RETURN_IF_ERROR(TakeSchema(fields.Get("guided_json"), "guided_json", rules));
  const JsonValue* outputs = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(fields.ReadObject("structured_outputs", &outputs));
  if (outputs == nullptr) return OkStatus();
  for (const JsonMember& member : outputs->AsObject()) {
    if (member.key != "json" && !member.value.is_null())
      return RequestError("structured_outputs: only its json is kept");
  }
  return TakeSchema(outputs->Find("json"), "structured_outputs.json", rules);
}

Status ReadReplyRules(JsonFields& fields, ReplyRules* rules) {
  LOCKSTEP_RETURN_IF_ERROR(ReadSchema(fields, rules));
  LOCKSTEP_RETURN_IF_ERROR(ReadToolChoice(fields, rules));
  std::optional<bool> parallel;
  LOCKSTEP_RETURN_IF_ERROR(fields.Read("parallel_tool_calls", &parallel));
  rules->parallel_calls = parallel.value_or(true);
  return OkStatus();
}

StatusOr<bool> ToolsAreOff(JsonFields& fields) {
  ReplyRules rules;
  LOCKSTEP_RETURN_IF_ERROR(ReadToolChoice(fields, &rules));
  const JsonValue* choice = fields.Get("tool_choice");
  return choice != nullptr && *choice == JsonValue::String("none");
}

}  // namespace lockstep
