// Events with facts, one line each, for people or for programs.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "runtime/base/log.h"

namespace lockstep::log {

// What lines look like. JSON: {"time", "level", "rank", "message"}, or the facts of an event in
// place of the message, in UTC.
enum class Form { kText, kJson };
// Process-wide; call it before Configure and before threads start.
void SetForm(Form form);

// A number or a text with its name.
class Fact {
 public:
  Fact(const char* name, std::string_view text) : name_(name), value_(text), is_text_(true) {}
  Fact(const char* name, int64_t value) : name_(name), value_(std::to_string(value)) {}
  // To a thousandth.
  Fact(const char* name, double value) : name_(name), value_(absl::StrFormat("%.3f", value)) {}

  const char* name() const { return name_; }
  const std::string& value() const { return value_; }
  bool is_text() const { return is_text_; }

 private:
  const char* name_;
  std::string value_;
  bool is_text_ = false;
};

// `request id=7f port=8000`, or {..., "event": "request", "id": "7f", "port": 8000}.
void Event(Level level, std::string_view what, std::span<const Fact> facts);

// `text` as JSON: quoted, and valid whatever it holds (bytes that are no UTF-8 become U+FFFD).
std::string Quoted(std::string_view text);

}  // namespace lockstep::log
