#include "runtime/grammar/reply_grammar.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <utility>
#include <vector>

#include "runtime/grammar/constraints.h"
#include "runtime/grammar/schema_check.h"

namespace lockstep {
namespace {

// Between two tokens of JSON; models that are kept to JSON are known to write spaces without end.
constexpr int64_t kMostSpaces = 24;
// Less than a call or an argument takes around its name and its value.
constexpr size_t kAroundBytes = 100;

JsonValue Text(std::string text) { return JsonValue::String(std::move(text)); }
std::string Tag(std::string_view name) { return kTagMark + std::string(name); }

// The formats that the library knows, as JSON.
JsonValue Constant(std::string text) {
  return JsonValue::MakeObject({{"type", Text("const_string")}, {"value", Text(std::move(text))}});
}
JsonValue Combined(const char* how, JsonValue::Array elements) {
  if (elements.size() == 1) return std::move(elements[0]);
  return JsonValue::MakeObject(
      {{"type", Text(how)}, {"elements", JsonValue::MakeArray(std::move(elements))}});
}
JsonValue Repeated(const char* how, JsonValue content) {
  return JsonValue::MakeObject({{"type", Text(how)}, {"content", std::move(content)}});
}
JsonValue Tagged(std::string begin, JsonValue content, std::string end) {
  return JsonValue::MakeObject({{"type", Text("tag")},
                                {"begin", Text(std::move(begin))},
                                {"content", std::move(content)},
                                {"end", Text(std::move(end))}});
}

// The schema with oneOf as anyOf, which is the same where the alternatives exclude each other
// (CheckSchema): the library would look for that again, and warn where it does not see it. `names`:
// the members are schemas by name.
JsonValue WithoutOneOf(const JsonValue& schema, bool names) {
  if (schema.is_array()) {
    JsonValue::Array items;
    for (const JsonValue& item : schema.AsArray()) items.push_back(WithoutOneOf(item, false));
    return JsonValue::MakeArray(std::move(items));
  }
  if (!schema.is_object()) return schema;
  JsonValue::Object members;
  for (const auto& [key, value] : schema.AsObject()) {
    const bool literal = !names && (key == "const" || key == "enum" || key == "default");
    const bool named = !names && (key == "properties" || key == "$defs" || key == "definitions");
    members.push_back(
        {!names && key == "oneOf" ? "anyOf" : key, literal ? value : WithoutOneOf(value, named)});
  }
  return JsonValue::MakeObject(std::move(members));
}

JsonValue Json(const JsonValue& schema) {
  return JsonValue::MakeObject({{"type", Text("json_schema")},
                                {"json_schema", WithoutOneOf(schema, false)},
                                {"max_whitespace_cnt", JsonValue::Int(kMostSpaces)}});
}
JsonValue Pattern(std::string pattern) {
  return JsonValue::MakeObject({{"type", Text("regex")}, {"pattern", Text(std::move(pattern))}});
}

Status TooLarge() {
  return RequestError("tools: the schemas have more than %d KiB in all", kMaxGrammarBytes >> 10);
}

// Whether something in the schema is the whole schema again.
bool NamesItsRoot(const JsonValue& schema) {
  if (schema.is_array()) {
    return std::any_of(schema.AsArray().begin(), schema.AsArray().end(), NamesItsRoot);
  }
  if (!schema.is_object()) return false;
  return std::any_of(schema.AsObject().begin(), schema.AsObject().end(), [](const auto& member) {
    return (member.key == "$ref" && member.value == Text("#")) || NamesItsRoot(member.value);
  });
}

// What of parameters without properties lets arguments come all the same; null: nothing.
const char* OtherArguments(const JsonValue& parameters) {
  for (const char* keyword : {"$ref", "anyOf", "oneOf", "allOf", "enum", "const"}) {
    if (parameters.Find(keyword) != nullptr) return keyword;
  }
  const JsonValue* more = parameters.Find("additionalProperties");
  return more != nullptr && *more != JsonValue::Bool(false) ? "additionalProperties" : nullptr;
}

// How a family writes calls.
class CallWriter {
 public:
  explicit CallWriter(ChatFamily family) : gap_(family == ChatFamily::kGlm46 ? "\n" : "") {}

  // One call of any of the tools.
  StatusOr<JsonValue::Array> Calls(const JsonValue& tools) {
    JsonValue::Array calls;
    for (size_t i = 0; i < tools.AsArray().size(); ++i) {
      LOCKSTEP_ASSIGN_OR_RETURN(JsonValue call,
                                Call(tools.AsArray()[i], absl::StrFormat("tools[%d].function", i)));
      calls.push_back(std::move(call));
    }
    return calls;
  }
  const std::string& gap() const { return gap_; }

 private:
  StatusOr<JsonValue> Call(const JsonValue& tool, const std::string& where);
  StatusOr<JsonValue> Arguments(const JsonValue* parameters, bool strict, const std::string& where);
  // The value and what encloses it.
  StatusOr<JsonValue> Value(const JsonValue& schema, const JsonValue& parameters, bool strict,
                            const std::string& where);
  // Of what is written, so that it is never much more than what may be sent.
  Status Count(size_t bytes) {
    return (bytes_ += bytes) > kMaxGrammarBytes ? TooLarge() : OkStatus();
  }
  // Text as it is, which goes to the end of the value. Thinking does not begin or end in it.
  JsonValue RawText(int64_t most_characters) const {
    JsonValue text = JsonValue::MakeObject(
        {{"type", Text("any_text")},
         {"excludes",
          JsonValue::MakeArray({Text("</arg_value>"), Text("<think>"), Text("</think>")})}});
    if (most_characters >= 0) text.Set("max_chars", JsonValue::Int(most_characters));
    return Enclosed(std::move(text));
  }
  JsonValue Enclosed(JsonValue value) const {
    return Tagged(Tag("<arg_value>"), std::move(value), Tag("</arg_value>") + gap_);
  }
  std::string KeyEnd() const { return Tag("</arg_key>") + gap_; }

  const std::string gap_;
  size_t bytes_ = 0;
};

StatusOr<JsonValue> CallWriter::Call(const JsonValue& tool, const std::string& where) {
  const JsonValue* inner = tool.Find("function");
  const JsonValue& function = inner != nullptr ? *inner : tool;
  const JsonValue *name = function.Find("name"), *strict = function.Find("strict");
  if (name == nullptr || !name->is_string() || name->AsString().find('<') != std::string::npos)
    return RequestError("%s.name must be a string without '<'", where);
  LOCKSTEP_RETURN_IF_ERROR(Count(name->AsString().size() + kAroundBytes));
  LOCKSTEP_ASSIGN_OR_RETURN(
      JsonValue arguments, Arguments(function.Find("parameters"),
                                     strict != nullptr && strict->Truthy(), where + ".parameters"));
  return Tagged(Tag("<tool_call>") + name->AsString() + gap_, std::move(arguments),
                Tag("</tool_call>"));
}

StatusOr<JsonValue> CallWriter::Arguments(const JsonValue* parameters, bool strict,
                                          const std::string& where) {
  if (parameters == nullptr || parameters->is_null()) return Constant("");
  if (strict) LOCKSTEP_RETURN_IF_ERROR(CheckSchema(*parameters, where));
  const JsonValue *properties = parameters->Find("properties"),
                  *required = parameters->Find("required");
  const bool listed = properties != nullptr && properties->is_object();
  const char* others = OtherArguments(*parameters);
  if (!listed || (properties->AsObject().empty() && others != nullptr)) {
    if (strict && others != nullptr) {
      return RequestError(
          "%s: '%s' is not kept at the top of a strict tool's parameters: list them "
          "as properties",
          where, others);
    }
    if (strict) return Constant("");
    return Repeated(
        "star", Combined("sequence", {Constant(Tag("<arg_key>")), Pattern("[A-Za-z0-9_.-]{1,64}"),
                                      Constant(KeyEnd()), RawText(-1)}));
  }
  if (properties->AsObject().size() > kMostProperties)
    return RequestError("%s.properties has more than %d of them", where, kMostProperties);
  std::set<std::string_view> musts;
  if (required != nullptr && required->is_array()) {
    for (const JsonValue& name : required->AsArray()) {
      if (name.is_string()) musts.insert(name.AsString());
    }
  }
  JsonValue::Array arguments;
  for (const JsonMember& property : properties->AsObject()) {
    if (property.key.find('<') != std::string::npos)
      return RequestError("%s.properties has a name with '<'", where);
    LOCKSTEP_RETURN_IF_ERROR(Count(property.key.size() + kAroundBytes));
    LOCKSTEP_ASSIGN_OR_RETURN(JsonValue value, Value(property.value, *parameters, strict,
                                                     where + ".properties." + property.key));
    JsonValue argument = Combined(
        "sequence", {Constant(Tag("<arg_key>") + property.key + KeyEnd()), std::move(value)});
    arguments.push_back(musts.contains(property.key) ? std::move(argument)
                                                     : Repeated("optional", std::move(argument)));
  }
  if (arguments.empty()) return Constant("");
  return Combined("sequence", std::move(arguments));
}

// The parser of replies takes the text of arguments whose type is "string", and reads all others as
// JSON: so they are written.
StatusOr<JsonValue> CallWriter::Value(const JsonValue& schema, const JsonValue& parameters,
                                      bool strict, const std::string& where) {
  const std::string written = schema.Dump();
  JsonValue whole = schema;
  if (whole.is_object() && written.find("\"$ref\"") != std::string::npos) {
    for (const char* keyword : {"$defs", "definitions"}) {
      const JsonValue* definitions = parameters.Find(keyword);
      if (definitions == nullptr) continue;
      LOCKSTEP_RETURN_IF_ERROR(Count(definitions->Dump().size()));
      whole.Set(keyword, *definitions);
    }
  }
  Status kept = CheckSchema(whole, where);
  // Each argument is a schema of its own here, and "#" would be that argument's.
  if (kept.ok() && NamesItsRoot(whole))
    kept = RequestError("%s: a $ref to '#' is not kept in arguments; use #/$defs/NAME", where);
  if (!kept.ok()) {
    if (strict) return kept;
    return RawText(-1);
  }
  const JsonValue* type = schema.Find("type");
  if (type == nullptr || !type->is_string() || type->AsString() != "string") {
    LOCKSTEP_RETURN_IF_ERROR(Count(written.size()));
    return Enclosed(Json(whole));
  }
  if (strict && (schema.Find("minLength") != nullptr || schema.Find("format") != nullptr)) {
    return RequestError("%s: of a string argument only enum, const, pattern and maxLength are kept",
                        where);
  }
  JsonValue::Array texts;
  if (const JsonValue* value = schema.Find("const")) texts = {*value};
  if (const JsonValue* values = schema.Find("enum")) texts = values->AsArray();
  if (!texts.empty()) {
    for (JsonValue& text : texts) {
      LOCKSTEP_RETURN_IF_ERROR(Count(text.AsString().size()));
      text = Constant(text.AsString());
    }
    return Enclosed(Combined("or", std::move(texts)));
  }
  if (const JsonValue* pattern = schema.Find("pattern"))
    return Enclosed(Pattern(pattern->AsString()));
  const JsonValue* most = schema.Find("maxLength");
  return RawText(most == nullptr ? -1 : most->ToInt64().value_or(-1));
}

bool AnyStrict(const JsonValue& tools) {
  if (!tools.is_array()) return false;
  return std::any_of(tools.AsArray().begin(), tools.AsArray().end(), [](const JsonValue& tool) {
    const JsonValue* function = tool.Find("function");
    const JsonValue* strict = (function != nullptr ? *function : tool).Find("strict");
    return strict != nullptr && strict->Truthy();
  });
}

// One call, or several behind each other.
JsonValue CallsOnly(JsonValue::Array calls, bool several, const std::string& gap) {
  JsonValue one = Combined("or", std::move(calls));
  if (!several) return one;
  if (gap.empty()) return Repeated("plus", std::move(one));
  JsonValue more = Repeated("star", Combined("sequence", {Constant(gap), one}));
  return Combined("sequence", {std::move(one), std::move(more)});
}

// Text in which calls begin where they like. Their mark counts as text, so that a call is one that
// only looks like it, too: the parser of replies takes it for one.
JsonValue TextWithCalls(JsonValue::Array calls, bool several) {
  for (JsonValue& call : calls) {
    call.Set("begin", Text(call.Find("begin")->AsString().substr(1)));
  }
  JsonValue::Array excluded;
  for (const char* tag : {"<think>", "</think>", "</tool_call>", "<arg_key>", "</arg_key>",
                          "<arg_value>", "</arg_value>"})
    excluded.push_back(Text(Tag(tag)));
  return JsonValue::MakeObject({{"type", Text("triggered_tags")},
                                {"triggers", JsonValue::MakeArray({Text("<tool_call>")})},
                                {"tags", JsonValue::MakeArray(std::move(calls))},
                                {"excludes", JsonValue::MakeArray(std::move(excluded))},
                                {"stop_after_first", JsonValue::Bool(!several)}});
}

StatusOr<std::string> Finished(const char* start, bool tabs, JsonValue format) {
  std::string text =
      JsonValue::MakeObject(
          {{"start", Text(start)}, {"tabs", JsonValue::Bool(tabs)}, {"format", std::move(format)}})
          .Dump();
  if (text.size() > kMaxGrammarBytes) return TooLarge();
  return text;
}

}  // namespace

StatusOr<std::string> MakeReplyGrammar(const ReplyRules& rules, ReplyStart start,
                                       ChatFamily family) {
  using Calls = ReplyRules::Calls;
  const char* begins = start == ReplyStart::kThinking    ? "thinking"
                       : start == ReplyStart::kUndecided ? "undecided"
                                                         : "content";
  const bool json = !rules.schema.is_null();
  if (rules.calls == Calls::kAuto && !json && !AnyStrict(rules.tools)) return std::string();
  JsonValue tools = rules.tools.is_array() ? rules.tools : JsonValue::MakeArray();
  if (rules.calls == Calls::kNamed) {
    std::erase_if(tools.AsArray(), [&](const JsonValue& tool) {
      const JsonValue* function = tool.Find("function");
      const JsonValue* name = (function != nullptr ? *function : tool).Find("name");
      return name == nullptr || *name != Text(rules.tool);
    });
  }
  if (rules.calls != Calls::kAuto && tools.AsArray().empty())
    return RequestError("tool_choice demands a call, but tools has none that it could be");
  if (json && rules.calls == Calls::kAuto)
    LOCKSTEP_RETURN_IF_ERROR(CheckSchema(rules.schema, rules.schema_name));
  CallWriter writer(family);
  LOCKSTEP_ASSIGN_OR_RETURN(JsonValue::Array calls, writer.Calls(tools));
  const bool several = rules.parallel_calls && rules.calls != Calls::kNamed;
  if (rules.calls != Calls::kAuto)
    return Finished(begins, true, CallsOnly(std::move(calls), several, writer.gap()));
  if (!json) return Finished(begins, true, TextWithCalls(std::move(calls), several));
  if (calls.empty()) return Finished(begins, false, Json(rules.schema));
  return Finished(
      begins, false,
      Combined("or", {Json(rules.schema), CallsOnly(std::move(calls), several, writer.gap())}));
}

StatusOr<std::string> MakeTextGrammar(const ReplyRules& rules) {
  if (rules.schema.is_null()) return std::string();
  LOCKSTEP_RETURN_IF_ERROR(CheckSchema(rules.schema, rules.schema_name));
  return Finished("content", false, Json(rules.schema));
}

}  // namespace lockstep
