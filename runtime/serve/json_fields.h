// Reads the fields of a JSON object that a client sent, one by one, each with its kind.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/text/json_value.h"

namespace lockstep {

// Null counts as absent. A RequestError names the field, what it is and what it must be. Must not
// outlive the object.
class JsonFields {
 public:
  // `where`: what stands before a field's name in errors ("messages[2].").
  explicit JsonFields(const JsonValue& object, std::string where = "");

  // The value as it is; null where there is none.
  const JsonValue* Get(std::string_view name);
  // Leaves `out` as it is where there is none.
  Status Read(std::string_view name, std::optional<bool>* out);
  Status Read(std::string_view name, std::optional<double>* out);
  Status Read(std::string_view name, std::optional<int64_t>* out, int64_t lowest, int64_t highest);
  Status Read(std::string_view name, std::optional<std::string>* out);
  // An object or array.
  Status ReadObject(std::string_view name, const JsonValue** out);
  Status ReadArray(std::string_view name, const JsonValue** out);

  // Names of fields that nobody asked for, in their order.
  std::vector<std::string> Unread() const;
  std::string Name(std::string_view field) const { return where_ + std::string(field); }

 private:
  Status WrongKind(std::string_view name, const JsonValue& value, const char* wanted) const;

  const JsonValue& object_;
  std::string where_;
  std::vector<std::string> read_;
};

// A note about a field that was overlooked. Names that are not plain are not repeated: what a
// client writes must not write to the log.
std::string NoMeaning(std::string_view field);

}  // namespace lockstep
