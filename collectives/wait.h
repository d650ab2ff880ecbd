// How a rank waits. Waking a sleeping thread costs more than a whole exchange (25-35 us against
// 3-10, measured 2026-11-21), so a step spins; when ranks outnumber cores a spinning rank would
// keep the awaited one from running, so it yields; between requests it sleeps.
//
// - kStep: spin for `spin_us`, then yield, after 10 ms of that sleep in the link, 1 ms at a time.
// - kIdle: the same, but sleep after 2 ms, 20 ms at a time.
//
// Spinning lasts about as long as a chunk of a large sum takes to come, because a yield gives a
// whole time slice to anyone who wants the core (3 ms, ten times of such a sum), and not longer,
// because the one who wants it may be the awaited rank: with 1 ms of spinning two ranks that shared
// a core for a moment took 2 ms an exchange.
//
// A link ends its sleep as soon as data arrives.
#pragma once

#include <sched.h>

#include <cstdint>

#include "collectives/group.h"
#include "runtime/base/clock.h"

namespace lockstep {

inline void PauseCpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Backoff {
 public:
  Backoff(Patience patience, int64_t spin_us, int64_t timeout_ms)
      : spin_ns_(spin_us * 1000),
        yield_ns_(spin_ns_ + (patience == Patience::kIdle ? 2'000'000 : 10'000'000)),
        nap_us_(patience == Patience::kIdle ? 20'000 : 1'000),
        deadline_ns_(patience == Patience::kIdle ? INT64_MAX : timeout_ms * 1'000'000) {}

  // After a look that found nothing. Returns how long to sleep in the link, 0: do not.
  int64_t Next() {
    // The clock costs as much as several looks at shared memory.
    if (start_ns_ != 0 && waited_ns_ < spin_ns_ && ++looks_ % 16 != 0) {
      PauseCpu();
      return 0;
    }
    const int64_t now = NowNs();
    if (start_ns_ == 0) start_ns_ = now;
    waited_ns_ = now - start_ns_;
    if (waited_ns_ < spin_ns_) return 0;
    if (waited_ns_ < yield_ns_) {
      (void)sched_yield();
      return 0;
    }
    return nap_us_;
  }
  bool expired() const { return waited_ns_ >= deadline_ns_; }

 private:
  int64_t spin_ns_, yield_ns_, nap_us_, deadline_ns_;
  int64_t start_ns_ = 0;
  int64_t waited_ns_ = 0;
  uint32_t looks_ = 0;
};

}  // namespace lockstep
