// Whether another group of ranks should be formed after some were lost: at once while losses are
// rare, and otherwise after a wait that doubles, so that clients are told to come back later
// instead of meeting one broken group after the other.
#pragma once

#include <cstdint>
#include <deque>

#include "runtime/base/clock.h"

namespace lockstep {

struct CircuitOptions {
  int64_t failures = 3;  // so many within the window open the circuit; 0: it never opens
  int64_t window_ms = 300'000;
  int64_t first_wait_ms = 10'000;    // before the first attempt after it has opened, ...
  int64_t longest_wait_ms = 60'000;  // ... doubled each time it opens again, up to this
};

// Closed: attempts are made at once. Open: none before the wait is over. Half open: one has been
// let through, and what becomes of it decides. A success closes the circuit and forgets no failure:
// as long as the window still holds enough of them the next one opens it again, for twice as long.
// Not thread-safe; pure but for the clock, which outlives it.
class CircuitBreaker {
 public:
  enum class State { kClosed, kOpen, kHalfOpen };

  explicit CircuitBreaker(const CircuitOptions& options, const Clock& clock = Clock::Real());

  // A group was lost, or could not be formed.
  void Failed();
  // Whether to form a group now: an open circuit whose wait is over becomes half open.
  bool MayTry();
  // Time in which no group computed, and so none could be lost: the window does not go on with it.
  void Skip(int64_t ns);
  // A group has computed.
  void Succeeded();

  State state() const { return state_; }
  // Until MayTry() says yes; 0 unless it is open.
  int64_t RemainingMs() const;
  // Failures that the window holds.
  int64_t failures() const { return static_cast<int64_t>(failed_ns_.size()); }

 private:
  void Forget();

  const CircuitOptions options_;
  const Clock& clock_;
  State state_ = State::kClosed;
  std::deque<int64_t> failed_ns_;  // oldest first; no more than decide
  int64_t wait_ms_ = 0;            // of the last time it opened; 0: not within the window
  int64_t opened_ns_ = 0;
};

}  // namespace lockstep
