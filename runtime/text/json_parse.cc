// The parser proper is nlohmann's; this builds values from its events, which still have the
// numbers' text.
#include <algorithm>
#include <exception>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

#include "runtime/text/json_value.h"

namespace lockstep {
namespace {

class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  bool null() override { return Add(JsonValue()); }
  bool boolean(bool value) override { return Add(JsonValue::Bool(value)); }
  bool number_integer(number_integer_t value) override { return Add(JsonValue::Int(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    return Add(JsonValue::BigInt(std::to_string(value)));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    // An integer too large for 64 bits arrives here too.
    const bool integer = text.find_first_of(".eE") == string_t::npos;
    return Add(integer ? JsonValue::BigInt(text) : JsonValue::Float(value));
  }
  bool string(string_t& value) override { return Add(JsonValue::String(std::move(value))); }
  bool binary(binary_t&) override { return Fail("binary data is not JSON"); }
  bool start_object(size_t) override { return Open(JsonValue::MakeObject()); }
  bool key(string_t& value) override {
    open_.back().AsObject().push_back({std::move(value), JsonValue()});
    return true;
  }
  bool end_object() override { return MergeDuplicates(&open_.back().AsObject()) && Close(); }
  bool start_array(size_t) override { return Open(JsonValue::MakeArray()); }
  bool end_array() override { return Close(); }
  bool parse_error(size_t position, const std::string& token,
                   const nlohmann::json::exception& error) override {
    (void)token;
    // "[json.exception.parse_error.101] parse error at line 1, column 2: syntax error ...": keep
    // the end.
    std::string what = error.what();
    if (const size_t end = what.find("] "); end != std::string::npos) what = what.substr(end + 2);
    return Fail(absl::StrFormat("%s (byte %d)", what, position));
  }

  JsonValue& root() { return root_; }
  const std::string& error() const { return error_; }

 private:
  bool Fail(std::string message) {
    if (error_.empty()) error_ = std::move(message);
    return false;
  }

  bool Add(JsonValue value) {
    if (++values_ > limits_.values)
      return Fail(absl::StrFormat("more than %d values", limits_.values));
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (open_.back().is_array()) {
      open_.back().AsArray().push_back(std::move(value));
    } else {
      open_.back().AsObject().back().value = std::move(value);
    }
    return true;
  }

  bool Open(JsonValue container) {
    if (open_.size() >= limits_.nesting) {
      return Fail(absl::StrFormat("nested deeper than %d levels", limits_.nesting));
    }
    open_.push_back(std::move(container));
    return true;
  }

  bool Close() {
    JsonValue closed = std::move(open_.back());
    open_.pop_back();
    return Add(std::move(closed));
  }

  // Python's dict: the first place, the last value.
  bool MergeDuplicates(JsonValue::Object* object) {
    std::vector<size_t> order(object->size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return (*object)[a].key < (*object)[b].key; });
    std::vector<bool> drop(object->size(), false);
    bool any = false;
    for (size_t i = 0, first = 0; i < order.size(); ++i) {
      if (i == 0 || (*object)[order[i]].key != (*object)[order[first]].key) {
        first = i;
        continue;
      }
      if (limits_.refuse_duplicate_keys) {
        return Fail(
            absl::StrFormat("the key \"%s\" stands twice in one object", (*object)[order[i]].key));
      }
      (*object)[order[first]].value = std::move((*object)[order[i]].value);
      drop[order[i]] = any = true;
    }
    if (!any) return true;
    JsonValue::Object kept;
    for (size_t i = 0; i < object->size(); ++i) {
      if (!drop[i]) kept.push_back(std::move((*object)[i]));
    }
    *object = std::move(kept);
    return true;
  }

  JsonLimits limits_;
  size_t values_ = 0;
  JsonValue root_;
  std::vector<JsonValue> open_;
  std::string error_;
};

}  // namespace

StatusOr<JsonValue> ParseJson(std::string_view text, const JsonLimits& limits) {
  Builder builder(limits);
  try {
    if (nlohmann::json::sax_parse(text.begin(), text.end(), &builder))
      return std::move(builder.root());
  } catch (const std::exception& exception) {
    return RequestError("JSON: %s", exception.what());
  }
  return RequestError("JSON: %s", builder.error());
}

}  // namespace lockstep
