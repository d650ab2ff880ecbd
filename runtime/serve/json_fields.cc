#include "runtime/serve/json_fields.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace lockstep {

JsonFields::JsonFields(const JsonValue& object, std::string where)
    : object_(object), where_(std::move(where)) {}

const JsonValue* JsonFields::Get(std::string_view name) {
  read_.emplace_back(name);
  const JsonValue* value = object_.Find(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

Status JsonFields::WrongKind(std::string_view name, const JsonValue& value,
                             const char* wanted) const {
  return RequestError("%s is %s, but must be %s", Name(name), value.KindName(), wanted);
}

Status JsonFields::Read(std::string_view name, std::optional<bool>* out) {
  const JsonValue* value = Get(name);
  if (value == nullptr) return OkStatus();
  if (!value->is_bool()) return WrongKind(name, *value, "a boolean");
  *out = value->AsBool();
  return OkStatus();
}

Status JsonFields::Read(std::string_view name, std::optional<double>* out) {
  const JsonValue* value = Get(name);
  if (value == nullptr) return OkStatus();
  const std::optional<double> number = value->ToDouble();
  if (!number.has_value() || !std::isfinite(*number)) return WrongKind(name, *value, "a number");
  *out = *number;
  return OkStatus();
}

Status JsonFields::Read(std::string_view name, std::optional<int64_t>* out, int64_t lowest,
                        int64_t highest) {
  const JsonValue* value = Get(name);
  if (value == nullptr) return OkStatus();
  std::optional<int64_t> number = value->ToInt64();
  // 5.0 is what some clients make of 5.
  if (!number.has_value() && value->is_float()) {
    const double given = *value->ToDouble();
    if (given == std::floor(given) && std::abs(given) < 9e15) number = static_cast<int64_t>(given);
  }
  if (!number.has_value() && !value->is_integer()) return WrongKind(name, *value, "a whole number");
  if (!number.has_value() || *number < lowest || *number > highest) {
    return RequestError("%s is %s, but must lie in %d .. %d", Name(name), value->Dump(), lowest,
                        highest);
  }
  *out = *number;
  return OkStatus();
}

Status JsonFields::Read(std::string_view name, std::optional<std::string>* out) {
  const JsonValue* value = Get(name);
  if (value == nullptr) return OkStatus();
  if (!value->is_string()) return WrongKind(name, *value, "a string");
  *out = value->AsString();
  return OkStatus();
}

Status JsonFields::ReadObject(std::string_view name, const JsonValue** out) {
  const JsonValue* value = Get(name);
  if (value == nullptr) return OkStatus();
  if (!value->is_object()) return WrongKind(name, *value, "an object");
  *out = value;
  return OkStatus();
}

Status JsonFields::ReadArray(std::string_view name, const JsonValue** out) {
  const JsonValue* value = Get(name);
  if (value == nullptr) return OkStatus();
  if (!value->is_array()) return WrongKind(name, *value, "an array");
  *out = value;
  return OkStatus();
}

std::vector<std::string> JsonFields::Unread() const {
  std::vector<std::string> names;
  for (const JsonMember& member : object_.AsObject()) {
    if (std::find(read_.begin(), read_.end(), member.key) == read_.end())
      names.push_back(member.key);
  }
  return names;
}

std::string NoMeaning(std::string_view field) {
  const bool plain =
      !field.empty() && field.size() <= 40 && std::all_of(field.begin(), field.end(), [](char c) {
        return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
               c == '_' || c == '-' || c == '.';
      });
  if (!plain) return "a field whose name is no plain word has no meaning here";
  return "the field '" + std::string(field) + "' has no meaning here";
}

}  // namespace lockstep
