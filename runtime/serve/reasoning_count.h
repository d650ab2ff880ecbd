// How many tokens of an answer were reasoning.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "runtime/text/reply_parser.h"
#include "runtime/text/tokenizer.h"

namespace lockstep {

class ReasoningCount {
 public:
  ReasoningCount(ReplyStart start, const Tokenizer& tokenizer)
      : end_(tokenizer.IdOf("</think>")), thinking_(start == ReplyStart::kThinking) {}

  void Add(std::span<const int32_t> ids) {
    for (const int32_t id : ids) {
      if (!thinking_) return;
      ++tokens_;
      thinking_ = id != end_;
    }
  }
  // With the one that ended it.
  int64_t tokens() const { return tokens_; }

 private:
  std::optional<int32_t> end_;
  bool thinking_;
  int64_t tokens_ = 0;
};

}  // namespace lockstep
