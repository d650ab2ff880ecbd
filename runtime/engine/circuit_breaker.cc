#include "runtime/engine/circuit_breaker.h"

#include <algorithm>

namespace lockstep {
namespace {

constexpr int64_t kNsPerMs = 1'000'000;

}  // namespace

CircuitBreaker::CircuitBreaker(const CircuitOptions& options, const Clock& clock)
    : options_(options), clock_(clock) {}

void CircuitBreaker::Forget() {
  const int64_t oldest_ns = clock_.NowNs() - options_.window_ms * kNsPerMs;
  while (!failed_ns_.empty() && failed_ns_.front() < oldest_ns) failed_ns_.pop_front();
  if (failed_ns_.empty() && state_ == State::kClosed) wait_ms_ = 0;
}

void CircuitBreaker::Failed() {
  if (options_.failures == 0) return;
  Forget();
  failed_ns_.push_back(clock_.NowNs());
  if (failures() > options_.failures) failed_ns_.pop_front();
  if (state_ != State::kHalfOpen && failures() < options_.failures) return;
  wait_ms_ =
      std::min(wait_ms_ == 0 ? options_.first_wait_ms : wait_ms_ * 2, options_.longest_wait_ms);
  opened_ns_ = clock_.NowNs();
  state_ = State::kOpen;
}

bool CircuitBreaker::MayTry() {
  if (state_ == State::kOpen && RemainingMs() == 0) state_ = State::kHalfOpen;
  return state_ != State::kOpen;
}

void CircuitBreaker::Skip(int64_t ns) {
  for (int64_t& failed_ns : failed_ns_) failed_ns += ns;
}

void CircuitBreaker::Succeeded() { state_ = State::kClosed; }

int64_t CircuitBreaker::RemainingMs() const {
  if (state_ != State::kOpen) return 0;
  const int64_t left_ns = opened_ns_ + wait_ms_ * kNsPerMs - clock_.NowNs();
  return left_ns > 0 ? (left_ns + kNsPerMs - 1) / kNsPerMs : 0;
}

}  // namespace lockstep
