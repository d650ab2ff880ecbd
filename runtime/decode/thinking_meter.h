// How much a sequence has thought, and when it must stop.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/decode/sampling_params.h"

namespace lockstep {

class ThinkingMeter {
 public:
  // A prompt whose last mark is the one that begins thinking leaves the model thinking.
  ThinkingMeter(const ThinkingLimit& limit, std::span<const int32_t> prompt) : limit_(limit) {
    if (limit_.tokens < 0) return;
    const auto mark = std::find_if(prompt.rbegin(), prompt.rend(), [this](int32_t token) {
      return token == limit_.begin || token == limit_.end;
    });
    thinking_ = mark != prompt.rend() && *mark == limit_.begin;
  }

  // Whether the next token must be the one that ends thinking.
  bool must_end() const { return thinking_ && thought_ >= limit_.tokens; }

  void Append(int32_t token) {
    if (limit_.tokens < 0) return;
    before_.push_back(thinking_);
    if (token == limit_.begin || token == limit_.end) {
      thinking_ = token == limit_.begin;
    } else if (thinking_) {
      ++thought_;
    }
  }

  // The last token that was appended and not taken back.
  void TakeBack(int32_t token) {
    if (limit_.tokens < 0) return;
    LOCKSTEP_CHECK(!before_.empty());
    thinking_ = before_.back();
    before_.pop_back();
    if (thinking_ && token != limit_.begin && token != limit_.end) --thought_;
  }

 private:
  ThinkingLimit limit_;
  bool thinking_ = false;
  int64_t thought_ = 0;       // tokens between the marks
  std::vector<bool> before_;  // by token of the output: whether the model was thinking
};

}  // namespace lockstep
