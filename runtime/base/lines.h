// The lines of a text, one after the other.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace lockstep {

class Lines {
 public:
  explicit Lines(std::string_view text) : rest_(text) {}

  // The next line that is not blank, without its end; false when there is none. It views the text.
  bool Next(std::string_view* line) {
    while (!rest_.empty()) {
      *line = rest_.substr(0, rest_.find('\n'));
      rest_.remove_prefix(std::min(line->size() + 1, rest_.size()));
      ++number_;
      if (line->find_first_not_of(" \t\r") != std::string_view::npos) return true;
    }
    return false;
  }
  // Of the line that Next gave last, from 1, blank ones counted.
  int64_t number() const { return number_; }

 private:
  std::string_view rest_;
  int64_t number_ = 0;
};

}  // namespace lockstep
