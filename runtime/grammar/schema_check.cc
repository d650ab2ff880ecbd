#include "runtime/grammar/schema_check.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <set>
#include <string_view>
#include <vector>

namespace lockstep {
namespace {

// Bounds of what a grammar costs, measured with the vocabulary of GLM-4.7 (docs/adr/0025).
constexpr int kMostSchemas = 1000;  // schemas within one
constexpr int kMostDepth = 24;      // one within another
constexpr int kMostValues = 1000;   // of all enums
constexpr int kMostSimilar = 8;     // alternatives that may begin alike
constexpr int64_t kMostLength = 100'000;
constexpr int64_t kMostItems = 10'000;
constexpr int64_t kMostMultiple = 1000;
constexpr size_t kMostPatternBytes = 200;
constexpr int64_t kMostRepeats = 64;               // of all {m,n} of a pattern, added up
constexpr double kMostExact = 9007199254740992.0;  // integers beyond are no doubles

constexpr std::string_view kAnnotations[] = {
    "title",     "description", "default", "examples", "deprecated",   "readOnly",
    "writeOnly", "$comment",    "$schema", "$id",      "$defs",        "definitions",
    "nullable",  "example",     "strict",  "$anchor",  "discriminator"};

bool IsOneOf(std::string_view word, std::initializer_list<std::string_view> words) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

bool IsAnnotation(std::string_view key) {
  return std::find(std::begin(kAnnotations), std::end(kAnnotations), key) != std::end(kAnnotations);
}

// A regular expression whose automaton stays small: no look-around, no back references, no
// repetition of what holds a repetition, and few counted ones.
Status CheckPattern(std::string_view pattern, const std::string& where) {
  if (pattern.size() > kMostPatternBytes)
    return RequestError("%s has %d bytes, but may have at most %d", where, pattern.size(),
                        kMostPatternBytes);
  std::vector<bool> repeats = {false};  // of each open group: whether it holds a repetition
  bool last_repeats = false;            // of what stands before
  int64_t counted = 0;
  const auto refuse = [&](const char* what) {
    return RequestError("%s has %s, which is not kept", where, what);
  };
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\') {
      if (++i == pattern.size()) return refuse("a '\\' at its end");
      if (IsOneOf(pattern.substr(i, 1),
                  {"1", "2", "3", "4", "5", "6", "7", "8", "9", "k", "b", "B", "p", "P"}))
        return refuse("a back reference, a word boundary or a property of Unicode");
      last_repeats = false;
    } else if (c == '[') {
      for (++i; i < pattern.size() && pattern[i] != ']'; ++i) i += pattern[i] == '\\';
      last_repeats = false;
    } else if (c == '(') {
      if (pattern.substr(i + 1, 1) == "?" && pattern.substr(i + 1, 2) != "?:")
        return refuse("a group that looks around or has a name");
      repeats.push_back(false);
    } else if (c == ')') {
      if (repeats.size() == 1) return refuse("a ')' too many");
      last_repeats = repeats.back();
      repeats.pop_back();
      if (last_repeats) repeats.back() = true;
    } else if (c == '*' || c == '+' || c == '{' || c == '?') {
      if (last_repeats && c != '?') return refuse("a repetition of a repetition");
      if (c == '{') {
        const size_t end = std::min(pattern.find('}', i), pattern.size());
        int64_t number = 0, most = 0;
        for (; i < end; ++i) {
          number = pattern[i] >= '0' && pattern[i] <= '9'
                       ? std::min<int64_t>(number * 10 + (pattern[i] - '0'), kMostRepeats + 1)
                       : 0;
          most = std::max(most, number);
        }
        if ((counted += most) > kMostRepeats) {
          return RequestError("%s counts to more than %d in all; use minLength and maxLength alone",
                              where, kMostRepeats);
        }
      }
      if (c != '?') last_repeats = repeats.back() = true;
    } else {
      last_repeats = false;
    }
  }
  return OkStatus();
}

using Types = std::set<std::string>;

class Checker {
 public:
  explicit Checker(const JsonValue& root) : root_(root) {}
  Status Check(const JsonValue& schema, const std::string& where, int depth);

 private:
  Status CheckKeywords(const JsonValue& schema, std::initializer_list<std::string_view> known,
                       const std::string& where, std::string_view kind) const;
  Status CheckValues(const JsonValue& schema, const std::string& where);
  Status CheckReference(const JsonValue& schema, const std::string& where) const;
  Status CheckAlternatives(const JsonValue& schema, const char* keyword, const std::string& where,
                           int depth);
  Status CheckTyped(const JsonValue& schema, const std::vector<std::string>& types,
                    const std::string& where, int depth);
  Status CheckObject(const JsonValue& schema, const std::string& where, int depth);
  Status CheckArray(const JsonValue& schema, const std::string& where, int depth);
  Status CheckString(const JsonValue& schema, const std::string& where) const;
  Status CheckNumber(const JsonValue& schema, bool integer, const std::string& where) const;
  Status CheckCount(const JsonValue& schema, const char* keyword, int64_t most,
                    const std::string& where) const;
  Status CheckDefinitions(const JsonValue& schema, const std::string& where, int depth);
  const JsonValue& Resolved(const JsonValue& schema) const;
  // Adds the types that values of the schema may have; of a reference those of what it names. Each
  // schema counts once: references can name one in numberless ways, and in circles.
  void AddTypes(const JsonValue& schema, std::set<const JsonValue*>* visited, Types* types) const;
  bool Exclude(const JsonValue& a, const Types& types, const JsonValue& b,
               const Types& others) const;

  const JsonValue& root_;
  int schemas_ = 0;
  int values_ = 0;
  int similar_ = 0;
};

std::string_view TypeOf(const JsonValue& value) {
  if (value.is_null()) return "null";
  if (value.is_bool()) return "boolean";
  if (value.is_integer()) return "integer";
  if (value.is_float()) return "number";
  if (value.is_string()) return "string";
  return value.is_array() ? "array" : "object";
}

StatusOr<std::vector<std::string>> ReadTypes(const JsonValue& type, const std::string& where) {
  std::vector<std::string> types;
  const auto add = [&](const JsonValue& one) {
    if (!one.is_string() || !IsOneOf(one.AsString(), {"null", "boolean", "integer", "number",
                                                      "string", "array", "object"}))
      return false;
    types.push_back(one.AsString());
    return true;
  };
  bool good = true;
  if (type.is_array()) {
    for (const JsonValue& one : type.AsArray()) good = good && add(one);
  } else {
    good = add(type);
  }
  if (!good || types.empty() || types.size() > 7)
    return RequestError("%s.type must be a type of JSON schema, or a list of them", where);
  return types;
}

const JsonValue& Checker::Resolved(const JsonValue& schema) const {
  const JsonValue* reference = schema.Find("$ref");
  if (reference == nullptr || !reference->is_string()) return schema;
  const JsonValue* target = ResolveReference(root_, reference->AsString());
  return target == nullptr ? schema : *target;
}

void Checker::AddTypes(const JsonValue& schema, std::set<const JsonValue*>* visited,
                       Types* types) const {
  if (!visited->insert(&schema).second) return;
  if (const JsonValue& target = Resolved(schema); &target != &schema) {
    AddTypes(target, visited, types);
    return;
  }
  if (const JsonValue* value = schema.Find("const")) {
    types->emplace(TypeOf(*value));
    return;
  }
  if (const JsonValue* values = schema.Find("enum"); values != nullptr && values->is_array()) {
    for (const JsonValue& value : values->AsArray()) types->emplace(TypeOf(value));
    return;
  }
  if (const JsonValue* type = schema.Find("type")) {
    if (const StatusOr<std::vector<std::string>> read = ReadTypes(*type, ""); read.ok())
      types->insert(read->begin(), read->end());
    return;
  }
  for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
    const JsonValue* options = schema.Find(keyword);
    if (options == nullptr || !options->is_array()) continue;
    for (const JsonValue& option : options->AsArray()) AddTypes(option, visited, types);
    return;
  }
  types->insert(schema.Find("properties") != nullptr ? "object" : "any");
}

// Whether no value can be of both: of other types, or objects that tell themselves apart by the
// value of a property that both must have.
bool Checker::Exclude(const JsonValue& a, const Types& types, const JsonValue& b,
                      const Types& others) const {
  const JsonValue &one = Resolved(a), &other = Resolved(b);
  const auto number = [](const Types& set) {
    return set.contains("number") || set.contains("integer");
  };
  const bool alike = types.contains("any") || others.contains("any") ||
                     (number(types) && number(others)) ||
                     std::any_of(types.begin(), types.end(),
                                 [&](const std::string& type) { return others.contains(type); });
  if (!alike) return true;
  const auto values = [](const JsonValue& schema) -> std::vector<JsonValue> {
    if (const JsonValue* value = schema.Find("const")) return {*value};
    const JsonValue* list = schema.Find("enum");
    return list != nullptr && list->is_array() ? list->AsArray() : std::vector<JsonValue>();
  };
  const auto apart = [&](const JsonValue& x, const JsonValue& y) {
    const std::vector<JsonValue> left = values(x), right = values(y);
    if (left.empty() || right.empty() || left.size() * right.size() > 10'000) return false;
    return std::none_of(left.begin(), left.end(), [&](const JsonValue& value) {
      return std::find(right.begin(), right.end(), value) != right.end();
    });
  };
  if (apart(one, other)) return true;
  const JsonValue *properties = one.Find("properties"), *required = one.Find("required"),
                  *other_properties = other.Find("properties"),
                  *other_required = other.Find("required");
  const auto short_list = [](const JsonValue* names) {
    return names != nullptr && names->is_array() && names->AsArray().size() <= kMostProperties;
  };
  if (types != Types{"object"} || others != types || properties == nullptr ||
      other_properties == nullptr || !short_list(required) || !short_list(other_required))
    return false;
  const auto has = [](const JsonValue& list, const JsonValue& name) {
    return std::find(list.AsArray().begin(), list.AsArray().end(), name) != list.AsArray().end();
  };
  for (const JsonValue& name : required->AsArray()) {
    if (!name.is_string() || !has(*other_required, name)) continue;
    const JsonValue* mine = properties->Find(name.AsString());
    const JsonValue* theirs = other_properties->Find(name.AsString());
    if (mine != nullptr && theirs != nullptr && apart(*mine, *theirs)) return true;
  }
  return false;
}

Status Checker::CheckKeywords(const JsonValue& schema,
                              std::initializer_list<std::string_view> known,
                              const std::string& where, std::string_view kind) const {
  for (const JsonMember& member : schema.AsObject()) {
    if (IsAnnotation(member.key) || IsOneOf(member.key, known)) continue;
    return RequestError("%s: '%s' is not kept %s", where, member.key.substr(0, 64),
                        std::string(kind));
  }
  return OkStatus();
}

Status Checker::CheckCount(const JsonValue& schema, const char* keyword, int64_t most,
                           const std::string& where) const {
  const JsonValue* value = schema.Find(keyword);
  if (value == nullptr) return OkStatus();
  const std::optional<int64_t> count = value->ToInt64();
  if (!count.has_value() || *count < 0 || *count > most)
    return RequestError("%s.%s must be an integer in 0 .. %d", where, keyword, most);
  return OkStatus();
}

Status Checker::CheckValues(const JsonValue& schema, const std::string& where) {
  const JsonValue* list = schema.Find("enum");
  LOCKSTEP_RETURN_IF_ERROR(CheckKeywords(schema, {list != nullptr ? "enum" : "const", "type"},
                                         where, list != nullptr ? "beside enum" : "beside const"));
  if (list != nullptr && (!list->is_array() || list->AsArray().empty()))
    return RequestError("%s.enum must be a list of values", where);
  const JsonValue::Array values =
      list != nullptr ? list->AsArray() : JsonValue::Array{*schema.Find("const")};
  values_ += static_cast<int>(std::min<size_t>(values.size(), kMostValues + 1));
  if (values_ > kMostValues)
    return RequestError("%s.enum: the schema has more than %d values in all", where, kMostValues);
  const JsonValue* type = schema.Find("type");
  if (type == nullptr) return OkStatus();
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> types, ReadTypes(*type, where));
  for (const JsonValue& value : values) {
    const std::string_view is = TypeOf(value);
    const bool fits = std::any_of(types.begin(), types.end(), [&](const std::string& wanted) {
      return wanted == is || (wanted == "number" && is == "integer");
    });
    if (!fits)
      return RequestError("%s has a value of type %s, which its type excludes", where,
                          std::string(is));
  }
  return OkStatus();
}

Status Checker::CheckReference(const JsonValue& schema, const std::string& where) const {
  LOCKSTEP_RETURN_IF_ERROR(CheckKeywords(schema, {"$ref"}, where, "beside $ref"));
  const JsonValue& reference = *schema.Find("$ref");
  if (!reference.is_string() || ResolveReference(root_, reference.AsString()) == nullptr)
    return RequestError("%s.$ref names no schema within this one, as #/$defs/NAME would", where);
  return OkStatus();
}

Status Checker::CheckAlternatives(const JsonValue& schema, const char* keyword,
                                  const std::string& where, int depth) {
  LOCKSTEP_RETURN_IF_ERROR(
      CheckKeywords(schema, {keyword}, where, std::string("beside ") + keyword));
  const JsonValue& options = *schema.Find(keyword);
  if (!options.is_array() || options.AsArray().empty() || options.AsArray().size() > 64)
    return RequestError("%s.%s must be a list of 1 .. 64 schemas", where, keyword);
  const JsonValue::Array& list = options.AsArray();
  const std::string_view name = keyword;
  if (name == "allOf" && list.size() > 1)
    return RequestError("%s.allOf is kept with one schema only; write them as one", where);
  std::set<std::string> seen;
  std::vector<Types> types(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string at = absl::StrFormat("%s.%s[%d]", where, keyword, i);
    LOCKSTEP_RETURN_IF_ERROR(Check(list[i], at, depth + 1));
    std::set<const JsonValue*> visited;
    AddTypes(list[i], &visited, &types[i]);
    for (const std::string& type : types[i]) similar_ += !seen.insert(type).second;
    similar_ += types[i].empty();  // nothing but a circle of references
    if (similar_ > kMostSimilar) {
      return RequestError("%s.%s: more than %d alternatives of the schema begin alike", where,
                          keyword, kMostSimilar);
    }
    for (size_t k = 0; name == "oneOf" && k < i; ++k) {
      if (!Exclude(list[k], types[k], list[i], types[i])) {
        return RequestError(
            "%s.oneOf: alternatives %d and %d are not seen to exclude each other; use anyOf", where,
            k, i);
      }
    }
  }
  return OkStatus();
}

Status Checker::CheckString(const JsonValue& schema, const std::string& where) const {
  LOCKSTEP_RETURN_IF_ERROR(CheckCount(schema, "minLength", kMostLength, where));
  LOCKSTEP_RETURN_IF_ERROR(CheckCount(schema, "maxLength", kMostLength, where));
  const JsonValue *pattern = schema.Find("pattern"), *format = schema.Find("format");
  if (format != nullptr && !format->is_string())
    return RequestError("%s.format must be a string", where);
  if (pattern == nullptr && format == nullptr) return OkStatus();
  if (schema.Find("minLength") != nullptr || schema.Find("maxLength") != nullptr ||
      (pattern != nullptr && format != nullptr)) {
    return RequestError("%s: of pattern, format, and minLength or maxLength only one is kept",
                        where);
  }
  if (pattern == nullptr) return OkStatus();
  if (!pattern->is_string()) return RequestError("%s.pattern must be a string", where);
  return CheckPattern(pattern->AsString(), where + ".pattern");
}

Status Checker::CheckNumber(const JsonValue& schema, bool integer, const std::string& where) const {
  for (const char* keyword : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}) {
    const JsonValue* value = schema.Find(keyword);
    if (value == nullptr) continue;
    const std::optional<double> number = value->ToDouble();
    if (!number.has_value() || std::abs(*number) > kMostExact ||
        (integer && *number != std::floor(*number)))
      return RequestError("%s.%s must be %s of at most 2^53", where, keyword,
                          integer ? "an integer" : "a number");
  }
  const JsonValue* multiple = schema.Find("multipleOf");
  if (multiple == nullptr) return OkStatus();
  const std::optional<int64_t> step = multiple->ToInt64();
  if (!integer || !step.has_value() || *step < 1 || *step > kMostMultiple)
    return RequestError("%s.multipleOf is kept for integers, and in 1 .. %d", where, kMostMultiple);
  return OkStatus();
}

Status Checker::CheckArray(const JsonValue& schema, const std::string& where, int depth) {
  LOCKSTEP_RETURN_IF_ERROR(CheckCount(schema, "minItems", kMostItems, where));
  LOCKSTEP_RETURN_IF_ERROR(CheckCount(schema, "maxItems", kMostItems, where));
  if (const JsonValue* unique = schema.Find("uniqueItems");
      unique != nullptr && !(unique->is_bool() && !unique->AsBool()))
    return RequestError("%s: 'uniqueItems' is not kept", where);
  if (const JsonValue* prefix = schema.Find("prefixItems")) {
    if (!prefix->is_array()) return RequestError("%s.prefixItems must be a list", where);
    for (size_t i = 0; i < prefix->AsArray().size(); ++i) {
      const std::string at = absl::StrFormat("%s.prefixItems[%d]", where, i);
      LOCKSTEP_RETURN_IF_ERROR(Check(prefix->AsArray()[i], at, depth + 1));
    }
  }
  const JsonValue* items = schema.Find("items");
  if (items == nullptr || items->is_bool()) return OkStatus();
  return Check(*items, where + ".items", depth + 1);
}

Status Checker::CheckObject(const JsonValue& schema, const std::string& where, int depth) {
  const JsonValue *properties = schema.Find("properties"), *required = schema.Find("required"),
                  *more = schema.Find("additionalProperties");
  if (properties != nullptr) {
    if (!properties->is_object() || properties->AsObject().size() > kMostProperties)
      return RequestError("%s.properties must be an object of at most %d", where, kMostProperties);
    for (const JsonMember& member : properties->AsObject()) {
      LOCKSTEP_RETURN_IF_ERROR(
          Check(member.value, where + ".properties." + member.key.substr(0, 64), depth + 1));
    }
  }
  if (required != nullptr) {
    if (!required->is_array() || required->AsArray().size() > kMostProperties)
      return RequestError("%s.required must be a list of at most %d", where, kMostProperties);
    for (const JsonValue& name : required->AsArray()) {
      if (!name.is_string() || properties == nullptr || !properties->Find(name.AsString()))
        return RequestError("%s.required has %s, which is none of the properties", where,
                            name.Dump().substr(0, 64));
    }
  }
  if (more == nullptr || more->is_bool()) return OkStatus();
  return Check(*more, where + ".additionalProperties", depth + 1);
}

Status Checker::CheckTyped(const JsonValue& schema, const std::vector<std::string>& types,
                           const std::string& where, int depth) {
  std::set<std::string_view> known = {"type"};
  for (const std::string& type : types) {
    if (type == "object") known.insert({"properties", "required", "additionalProperties"});
    if (type == "array")
      known.insert({"items", "prefixItems", "minItems", "maxItems", "uniqueItems"});
    if (type == "string") known.insert({"minLength", "maxLength", "pattern", "format"});
    if (type == "number" || type == "integer")
      known.insert(
          {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format"});
  }
  for (const JsonMember& member : schema.AsObject()) {
    if (!IsAnnotation(member.key) && !known.contains(member.key)) {
      return RequestError("%s: '%s' is not kept%s", where, member.key.substr(0, 64),
                          types.empty() ? " without a type" : " for this type");
    }
  }
  for (const std::string& type : types) {
    if (type == "object") LOCKSTEP_RETURN_IF_ERROR(CheckObject(schema, where, depth));
    if (type == "array") LOCKSTEP_RETURN_IF_ERROR(CheckArray(schema, where, depth));
    if (type == "string") LOCKSTEP_RETURN_IF_ERROR(CheckString(schema, where));
    if (type == "number" || type == "integer")
      LOCKSTEP_RETURN_IF_ERROR(CheckNumber(schema, type == "integer", where));
  }
  return OkStatus();
}

Status Checker::CheckDefinitions(const JsonValue& schema, const std::string& where, int depth) {
  for (const char* keyword : {"$defs", "definitions"}) {
    const JsonValue* definitions = schema.Find(keyword);
    if (definitions == nullptr) continue;
    if (!definitions->is_object()) return RequestError("%s.%s must be an object", where, keyword);
    for (const JsonMember& member : definitions->AsObject()) {
      LOCKSTEP_RETURN_IF_ERROR(
          Check(member.value, absl::StrFormat("%s.%s.%s", where, keyword, member.key.substr(0, 64)),
                depth + 1));
    }
  }
  return OkStatus();
}

Status Checker::Check(const JsonValue& schema, const std::string& where, int depth) {
  if (++schemas_ > kMostSchemas)
    return RequestError("%s: the schema holds more than %d schemas", where, kMostSchemas);
  if (depth > kMostDepth)
    return RequestError("%s: the schema is nested more than %d deep", where, kMostDepth);
  if (schema.is_bool() && schema.AsBool()) return OkStatus();
  if (!schema.is_object())
    return RequestError("%s is %s, but must be a schema that something fits", where,
                        schema.KindName());
  LOCKSTEP_RETURN_IF_ERROR(CheckDefinitions(schema, where, depth));
  if (schema.Find("$ref") != nullptr) return CheckReference(schema, where);
  if (schema.Find("const") != nullptr || schema.Find("enum") != nullptr)
    return CheckValues(schema, where);
  for (const char* keyword : {"anyOf", "oneOf", "allOf"}) {
    if (schema.Find(keyword) != nullptr) return CheckAlternatives(schema, keyword, where, depth);
  }
  std::vector<std::string> types;
  if (const JsonValue* type = schema.Find("type")) {
    LOCKSTEP_ASSIGN_OR_RETURN(types, ReadTypes(*type, where));
  } else if (schema.Find("properties") != nullptr) {
    types = {"object"};
  }
  return CheckTyped(schema, types, where, depth);
}

}  // namespace

const JsonValue* ResolveReference(const JsonValue& root, const std::string& reference) {
  if (reference == "#") return &root;
  // Only names without an escape, and one level of definitions: what generators of schemas write.
  for (const std::string_view before : {"#/$defs/", "#/definitions/"}) {
    if (!reference.starts_with(before)) continue;
    const std::string name = reference.substr(before.size());
    if (name.find_first_of("/~%") != std::string::npos) return nullptr;
    const JsonValue* definitions = root.Find(before.substr(2, before.size() - 3));
    return definitions == nullptr ? nullptr : definitions->Find(name);
  }
  return nullptr;
}

Status CheckSchema(const JsonValue& schema, const std::string& where) {
  if (schema.Dump().size() > (size_t{64} << 10))
    return RequestError("%s has more than 64 KiB", where);
  return Checker(schema).Check(schema, where, 0);
}

}  // namespace lockstep
