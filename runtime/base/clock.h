// Time as an interface: the real clock, and a virtual one for simulation and tests.
#pragma once

#include <chrono>
#include <cstdint>
#include <thread>

namespace lockstep {

class Clock {
 public:
  virtual ~Clock() = default;
  // Monotonic nanoseconds since some fixed point.
  virtual int64_t NowNs() const = 0;
  static const Clock& Real();
};

class VirtualClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns_; }
  void Advance(int64_t ns) { now_ns_ += ns; }
  // To any time: of parts that are simulated in turns, each has its own.
  void Set(int64_t now_ns) { now_ns_ = now_ns; }

 private:
  int64_t now_ns_ = 0;
};

inline int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

inline void SleepMs(int64_t ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// A point in time after which a wait gives up. Default-constructed: never.
class Deadline {
 public:
  Deadline() = default;
  static Deadline After(int64_t timeout_ms) { return Deadline(NowNs() + timeout_ms * 1'000'000); }
  bool Passed() const { return at_ns_ != kNever && NowNs() >= at_ns_; }
  bool never() const { return at_ns_ == kNever; }
  // Milliseconds left, at least 0; a large number when it never passes.
  int64_t RemainingMs() const {
    if (at_ns_ == kNever) return 1'000'000'000;
    const int64_t left = at_ns_ - NowNs();
    return left > 0 ? left / 1'000'000 + 1 : 0;
  }

 private:
  static constexpr int64_t kNever = INT64_MAX;
  explicit Deadline(int64_t at_ns) : at_ns_(at_ns) {}
  int64_t at_ns_ = kNever;
};

}  // namespace lockstep
