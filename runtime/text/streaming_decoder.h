// Text of tokens as they arrive, never half a character.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/text/tokenizer.h"

namespace lockstep {

// Decodes one sequence token by token. Text is held back while it ends in a part of a character or
// in U+FFFD (which the next token might still turn out to complete or replace), exactly as Hugging
// Face's DecodeStream does: the emitted pieces and Finish() joined equal Tokenizer::Decode of all
// ids. Amortized O(bytes of the tokens). Not thread-safe; the tokenizer must outlive it.
class StreamingDecoder {
 public:
  StreamingDecoder(const Tokenizer& tokenizer, bool skip_special)
      : tokenizer_(&tokenizer), skip_special_(skip_special) {}

  // The text that becomes final with this token (never empty), or nothing yet. Valid UTF-8.
  std::optional<std::string> Push(int32_t id);
  // What is still held back, with U+FFFD for what forms no character; empty when nothing is. Starts
  // anew.
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  std::string held_;     // decoded, not yet emitted: ends in U+FFFD or is followed by partial_
  std::string partial_;  // at most 3 bytes: the beginning of a character
};

}  // namespace lockstep
