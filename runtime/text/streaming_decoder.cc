#include "runtime/text/streaming_decoder.h"

#include <utility>

#include "runtime/text/unicode.h"

namespace lockstep {

std::optional<std::string> StreamingDecoder::Push(int32_t id) {
  if (skip_special_ && tokenizer_->IsSpecial(id)) return std::nullopt;
  const std::string bytes = std::exchange(partial_, {}) + std::string(tokenizer_->TokenBytes(id));
  for (size_t at = 0; at < bytes.size();) {
    const Utf8Char next = DecodeUtf8(bytes, at);
    if (next.incomplete) {
      partial_ = bytes.substr(at);
      break;
    }
    held_ += next.valid ? std::string_view(bytes).substr(at, next.length) : kReplacementCharacter;
    at += next.length;
  }
  if (held_.empty() || !partial_.empty() || held_.ends_with(kReplacementCharacter))
    return std::nullopt;
  return std::exchange(held_, {});
}

std::string StreamingDecoder::Finish() {
  if (!partial_.empty()) held_ += kReplacementCharacter;
  partial_.clear();
  return std::exchange(held_, {});
}

}  // namespace lockstep
