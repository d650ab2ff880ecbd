#include "runtime/text/json_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

#include "runtime/base/check.h"
#include "runtime/text/unicode.h"

namespace lockstep {
namespace {

// Python's repr of a float: the shortest digits that read back as the same number; an exponent
// below 1e-4 and from 1e16 on.
std::string FloatRepr(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value < 0 ? "-inf" : "inf";
  char buffer[64];
  const auto end =
      std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::scientific);
  std::string text(buffer, end.ptr);
  const size_t e = text.find('e');
  const int exponent = std::stoi(text.substr(e + 1));  // to_chars wrote it: at most three digits
  std::string digits;
  const bool negative = text[0] == '-';
  for (char c : text.substr(0, e)) {
    if (c >= '0' && c <= '9') digits.push_back(c);
  }
  std::string out = negative ? "-" : "";
  const int count = static_cast<int>(digits.size());
  if (exponent < -4 || exponent >= 16) {
    out += digits.substr(0, 1);
    if (count > 1) out += "." + digits.substr(1);
    return out + absl::StrFormat("e%c%02d", exponent < 0 ? '-' : '+', std::abs(exponent));
  }
  if (exponent < 0)
    return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
  if (count <= exponent + 1) {
    return out + digits + std::string(static_cast<size_t>(exponent + 1 - count), '0') + ".0";
  }
  return out + digits.substr(0, static_cast<size_t>(exponent) + 1) + "." +
         digits.substr(static_cast<size_t>(exponent) + 1);
}

// json.dumps spells these three otherwise.
std::string FloatJson(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value < 0 ? "-Infinity" : "Infinity";
  return FloatRepr(value);
}

void AppendJsonString(std::string_view text, std::string* out) {
  out->push_back('"');
  for (char c : text) {
    switch (c) {
      case '"':
        *out += "\\\"";
        break;
      case '\\':
        *out += "\\\\";
        break;
      case '\n':
        *out += "\\n";
        break;
      case '\r':
        *out += "\\r";
        break;
      case '\t':
        *out += "\\t";
        break;
      case '\b':
        *out += "\\b";
        break;
      case '\f':
        *out += "\\f";
        break;
      default:
        if (static_cast<unsigned char>(c) < 0x20) {
          *out += absl::StrFormat("\\u%04x", static_cast<unsigned char>(c));
        } else {
          out->push_back(c);
        }
    }
  }
  out->push_back('"');
}

void AppendStringRepr(std::string_view text, std::string* out) {
  const bool has_single = text.find('\'') != std::string_view::npos;
  const bool has_double = text.find('"') != std::string_view::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  out->push_back(quote);
  for (size_t at = 0; at < text.size();) {
    const Utf8Char next = DecodeUtf8(text, at);
    const char32_t code = next.code;
    if (code == '\\' || code == static_cast<char32_t>(quote)) {
      out->push_back('\\');
      out->push_back(static_cast<char>(code));
    } else if (code == '\n') {
      *out += "\\n";
    } else if (code == '\r') {
      *out += "\\r";
    } else if (code == '\t') {
      *out += "\\t";
    } else if (IsPythonPrintable(code)) {
      AppendUtf8(code, out);
    } else if (code < 0x100) {
      *out += absl::StrFormat("\\x%02x", static_cast<uint32_t>(code));
    } else if (code < 0x10000) {
      *out += absl::StrFormat("\\u%04x", static_cast<uint32_t>(code));
    } else {
      *out += absl::StrFormat("\\U%08x", static_cast<uint32_t>(code));
    }
    at += next.length;
  }
  out->push_back(quote);
}

// json.dumps and repr differ in words, quotes and floats only.
enum class Style { kJson, kRepr };

void Append(const JsonValue& value, Style style, std::string* out) {
  const bool json = style == Style::kJson;
  const auto append_string = [&](std::string_view text) {
    json ? AppendJsonString(text, out) : AppendStringRepr(text, out);
  };
  if (value.is_null()) {
    *out += json ? "null" : "None";
  } else if (value.is_bool()) {
    *out += value.AsBool() ? (json ? "true" : "True") : (json ? "false" : "False");
  } else if (value.is_integer()) {
    *out += value.AsDigits();
  } else if (value.is_float()) {
    *out += json ? FloatJson(*value.ToDouble()) : FloatRepr(*value.ToDouble());
  } else if (value.is_string()) {
    append_string(value.AsString());
  } else if (value.is_array()) {
    out->push_back('[');
    const char* separator = "";
    for (const JsonValue& item : value.AsArray()) {
      *out += separator;
      Append(item, style, out);
      separator = ", ";
    }
    out->push_back(']');
  } else {
    out->push_back('{');
    const char* separator = "";
    for (const JsonMember& member : value.AsObject()) {
      *out += separator;
      append_string(member.key);
      *out += ": ";
      Append(member.value, style, out);
      separator = ", ";
    }
    out->push_back('}');
  }
}

bool SameObject(const JsonValue::Object& a, const JsonValue::Object& b) {
  if (a.size() != b.size()) return false;
  const auto order = [](const JsonValue::Object& object) {
    std::vector<size_t> indices(object.size());
    std::iota(indices.begin(), indices.end(), size_t{0});
    std::sort(indices.begin(), indices.end(),
              [&](size_t x, size_t y) { return object[x].key < object[y].key; });
    return indices;
  };
  const std::vector<size_t> order_a = order(a), order_b = order(b);
  for (size_t i = 0; i < a.size(); ++i) {
    const JsonMember &x = a[order_a[i]], &y = b[order_b[i]];
    if (x.key != y.key || !(x.value == y.value)) return false;
  }
  return true;
}

}  // namespace

JsonValue::JsonValue(const JsonValue&) = default;
JsonValue::JsonValue(JsonValue&&) noexcept = default;
JsonValue& JsonValue::operator=(const JsonValue&) = default;
JsonValue& JsonValue::operator=(JsonValue&&) noexcept = default;
JsonValue::~JsonValue() = default;

JsonValue JsonValue::Bool(bool value) {
  JsonValue out;
  out.value_ = value;
  return out;
}

JsonValue JsonValue::Int(int64_t value) { return BigInt(std::to_string(value)); }

JsonValue JsonValue::BigInt(std::string_view decimal) {
  const bool negative = !decimal.empty() && decimal[0] == '-';
  std::string_view digits = negative ? decimal.substr(1) : decimal;
  const size_t first = digits.find_first_not_of('0');
  digits = first == std::string_view::npos ? "0" : digits.substr(first);
  JsonValue out;
  out.value_ = Integer{(negative && digits != "0" ? "-" : "") + std::string(digits)};
  return out;
}

JsonValue JsonValue::Float(double value) {
  JsonValue out;
  out.value_ = value;
  return out;
}

JsonValue JsonValue::String(std::string value) {
  JsonValue out;
  out.value_ = std::move(value);
  return out;
}

JsonValue JsonValue::MakeArray(Array items) {
  JsonValue out;
  out.value_ = std::move(items);
  return out;
}

JsonValue JsonValue::MakeObject() { return MakeObject(Object()); }

JsonValue JsonValue::MakeObject(Object members) {
  JsonValue out;
  out.value_ = std::move(members);
  return out;
}

const char* JsonValue::KindName() const {
  if (is_null()) return "null";
  if (is_bool()) return "a boolean";
  if (is_integer()) return "an integer";
  if (is_float()) return "a number";
  if (is_string()) return "a string";
  return is_array() ? "an array" : "an object";
}

bool JsonValue::AsBool() const {
  LOCKSTEP_CHECK(is_bool());
  return std::get<bool>(value_);
}
const std::string& JsonValue::AsString() const {
  LOCKSTEP_CHECK(is_string());
  return std::get<std::string>(value_);
}
const std::string& JsonValue::AsDigits() const {
  LOCKSTEP_CHECK(is_integer());
  return std::get<Integer>(value_).digits;
}
const JsonValue::Array& JsonValue::AsArray() const {
  LOCKSTEP_CHECK(is_array());
  return std::get<Array>(value_);
}
JsonValue::Array& JsonValue::AsArray() {
  LOCKSTEP_CHECK(is_array());
  return std::get<Array>(value_);
}
const JsonValue::Object& JsonValue::AsObject() const {
  LOCKSTEP_CHECK(is_object());
  return std::get<Object>(value_);
}
JsonValue::Object& JsonValue::AsObject() {
  LOCKSTEP_CHECK(is_object());
  return std::get<Object>(value_);
}

std::optional<int64_t> JsonValue::ToInt64() const {
  if (!is_integer()) return std::nullopt;
  const std::string& digits = AsDigits();
  int64_t value = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (result.ec != std::errc() || result.ptr != digits.data() + digits.size()) return std::nullopt;
  return value;
}

std::optional<double> JsonValue::ToDouble() const {
  if (is_float()) return std::get<double>(value_);
  if (!is_integer()) return std::nullopt;
  const std::string& digits = AsDigits();
  double value = 0;
  const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (result.ec != std::errc()) return std::nullopt;
  return value;
}

const JsonValue* JsonValue::Find(std::string_view key) const {
  if (!is_object()) return nullptr;
  for (const JsonMember& member : std::get<Object>(value_)) {
    if (member.key == key) return &member.value;
  }
  return nullptr;
}

JsonValue* JsonValue::Find(std::string_view key) {
  return const_cast<JsonValue*>(std::as_const(*this).Find(key));
}

void JsonValue::Set(std::string_view key, JsonValue value) {
  if (JsonValue* found = Find(key)) {
    *found = std::move(value);
  } else {
    AsObject().push_back({std::string(key), std::move(value)});
  }
}

bool JsonValue::Truthy() const {
  if (is_bool()) return std::get<bool>(value_);
  if (is_integer()) return AsDigits() != "0";
  if (is_float()) return std::get<double>(value_) != 0;
  if (is_string()) return !AsString().empty();
  if (is_array()) return !AsArray().empty();
  return is_object() && !AsObject().empty();
}

std::string JsonValue::Dump() const {
  std::string out;
  Append(*this, Style::kJson, &out);
  return out;
}

std::string JsonValue::PythonStr() const {
  if (is_string()) return AsString();
  std::string out;
  Append(*this, Style::kRepr, &out);
  return out;
}

bool operator==(const JsonValue& a, const JsonValue& b) {
  if (a.value_.index() != b.value_.index()) return false;
  if (a.is_null()) return true;
  if (a.is_bool()) return a.AsBool() == b.AsBool();
  if (a.is_integer()) return a.AsDigits() == b.AsDigits();
  if (a.is_float()) return *a.ToDouble() == *b.ToDouble();
  if (a.is_string()) return a.AsString() == b.AsString();
  if (a.is_array()) return a.AsArray() == b.AsArray();
  return SameObject(a.AsObject(), b.AsObject());
}

}  // namespace lockstep
