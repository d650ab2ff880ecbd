// Stop strings over streamed text: holds back what could still become a stop string, and cuts the
// text where one begins.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lockstep {

enum class FinishReason {
  kNone,       // still running
  kStop,       // an end token, a stop token or a stop string
  kLength,     // max_tokens or the context is used up
  kCancelled,  // the client went away, or its deadline passed
  kError,      // the group or the model failed
};

// "stop", "length", "cancelled", "error"; "" for kNone.
const char* FinishReasonName(FinishReason reason);

class StopMatcher {
 public:
  explicit StopMatcher(std::vector<std::string> texts) : texts_(std::move(texts)) {}

  // Takes the next piece of the answer and returns what may be shown now. After a stop string was
  // seen, matched() is true and everything from its first byte on is dropped. Of several matches
  // the one that is complete first counts, of those the longest; how the text was cut into pieces
  // makes no difference.
  std::string Push(std::string_view piece);
  // The answer ended otherwise: what was held back.
  std::string Flush();
  bool matched() const { return matched_; }
  // The stop string that was seen; empty: none.
  const std::string& match() const { return match_; }

 private:
  std::vector<std::string> texts_;
  std::string held_;
  bool matched_ = false;
  std::string match_;
};

}  // namespace lockstep
