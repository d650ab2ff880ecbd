// JSON as chat requests need it: key order, integers of any size and the difference between 1
// and 1.0 are kept, and values print as Python prints them, because the checkpoints' templates were
// written for Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct JsonMember;

// One JSON value; a plain value type (copies are deep). Object keys are unique.
class JsonValue {
 public:
  using Array = std::vector<JsonValue>;
  using Object = std::vector<JsonMember>;
  JsonValue() = default;  // null
  JsonValue(const JsonValue&);
  JsonValue(JsonValue&&) noexcept;
  JsonValue& operator=(const JsonValue&);
  JsonValue& operator=(JsonValue&&) noexcept;
  ~JsonValue();

  static JsonValue Bool(bool value);
  static JsonValue Int(int64_t value);
  static JsonValue BigInt(std::string_view decimal);  // "-"? digits
  static JsonValue Float(double value);
  static JsonValue String(std::string value);
  static JsonValue MakeArray(Array items = {});
  static JsonValue MakeObject();
  static JsonValue MakeObject(Object members);

  bool is_null() const { return std::holds_alternative<std::monostate>(value_); }
  bool is_bool() const { return std::holds_alternative<bool>(value_); }
  bool is_integer() const { return std::holds_alternative<Integer>(value_); }
  bool is_float() const { return std::holds_alternative<double>(value_); }
  bool is_string() const { return std::holds_alternative<std::string>(value_); }
  bool is_array() const { return std::holds_alternative<Array>(value_); }
  bool is_object() const { return std::holds_alternative<Object>(value_); }
  // "null", "a boolean", "an integer", "a number", "a string", "an array", "an object": for error
  // messages.
  const char* KindName() const;

  // The value of that kind; asking for another kind is a bug (CHECK).
  bool AsBool() const;
  const std::string& AsString() const;
  const std::string& AsDigits() const;  // of an integer: its decimal text
  const Array& AsArray() const;
  Array& AsArray();
  const Object& AsObject() const;
  Object& AsObject();
  // The integer if this is one that fits; otherwise nothing.
  std::optional<int64_t> ToInt64() const;
  // The number, integer or not; otherwise nothing.
  std::optional<double> ToDouble() const;

  // The member of an object; null when this is no object or has no such key.
  const JsonValue* Find(std::string_view key) const;
  JsonValue* Find(std::string_view key);
  // Sets a member of an object (a new key goes last). This must be an object.
  void Set(std::string_view key, JsonValue value);

  // As Python's bool(): false for null, false, 0, 0.0, "", [] and {}.
  bool Truthy() const;
  // As Python's json.dumps(value, ensure_ascii=False): ", " and ": ", keys in order, floats as repr
  // prints them.
  std::string Dump() const;
  // As Python's str(): a string as it is, True, None, and lists and dicts as repr prints them.
  std::string PythonStr() const;

  friend bool operator==(const JsonValue& a, const JsonValue& b);  // objects: in any order

 private:
  // An integer as its canonical decimal text ("-12"; never "-0" or "007").
  struct Integer {
    std::string digits;
  };
  std::variant<std::monostate, bool, Integer, double, std::string, Array, Object> value_;
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

struct JsonLimits {
  size_t nesting = 200;             // deeper input is refused
  size_t values = size_t{1} << 40;  // more values are refused
  bool refuse_duplicate_keys =
      false;  // otherwise the last value wins at the first one's place, as in Python
};

// Of texts that strangers send.
inline constexpr JsonLimits kStrangersJson = {.nesting = 64, .values = 1 << 20};

// Parses one JSON text (strict UTF-8, nothing after it). A RequestError says what is wrong and at
// which byte.
StatusOr<JsonValue> ParseJson(std::string_view text, const JsonLimits& limits = {});

}  // namespace lockstep
