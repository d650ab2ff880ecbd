#include "runtime/decode/stop.h"

#include <algorithm>
#include <utility>

namespace lockstep {

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kCancelled:
      return "cancelled";
    case FinishReason::kError:
      return "error";
  }
  return "";
}

std::string StopMatcher::Push(std::string_view piece) {
  if (matched_) return {};
  if (texts_.empty()) return std::string(piece);
  held_ += piece;
  // The match that ends first, as if the text had come byte by byte: the result does not depend on
  // how it was cut.
  size_t begin = std::string::npos, end = std::string::npos;
  for (const std::string& text : texts_) {
    const size_t at = held_.find(text);
    if (at == std::string::npos) continue;
    if (at + text.size() < end || (at + text.size() == end && at < begin)) {
      begin = at;
      end = at + text.size();
    }
  }
  if (begin != std::string::npos) {
    matched_ = true;
    match_ = held_.substr(begin, end - begin);
    return std::exchange(held_, {}).substr(0, begin);
  }
  // The longest tail that is the beginning of a stop string stays.
  size_t keep = 0;
  for (const std::string& text : texts_) {
    for (size_t length = std::min(text.size() - 1, held_.size()); length > keep; --length) {
      if (held_.compare(held_.size() - length, length, text, 0, length) == 0) keep = length;
    }
  }
  std::string shown = held_.substr(0, held_.size() - keep);
  held_.erase(0, held_.size() - keep);
  return shown;
}

std::string StopMatcher::Flush() { return matched_ ? std::string() : std::exchange(held_, {}); }

}  // namespace lockstep
