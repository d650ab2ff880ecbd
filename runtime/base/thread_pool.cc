#include "runtime/base/thread_pool.h"

#include <sched.h>

#include <algorithm>

#include "runtime/base/os.h"

namespace lockstep {
namespace {

// Turns of SpinTurn after which a helper goes to sleep: some milliseconds, longer than any gap
// inside a step.
constexpr uint64_t kTurnsBeforeSleep = 20'000;
constexpr uint64_t kTurnsBeforeYield = 2'000;

}  // namespace

void SpinTurn(uint64_t turn) {
  if (turn < kTurnsBeforeYield) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  } else {
    sched_yield();
  }
}

ThreadPool::ThreadPool(int count, std::span<const int> cpus) {
  const bool bound = static_cast<int>(cpus.size()) == count;
  try {
    for (int thread = 1; thread < count; ++thread) {
      const int cpu = bound ? cpus[static_cast<size_t>(thread)] : -1;
      helpers_.emplace_back([this, thread, cpu] {
        if (cpu >= 0) (void)os::SetAffinity({cpu});  // slower without, not wrong
        HelperLoop(thread);
      });
    }
  } catch (...) {
    StopHelpers();
    throw;
  }
}

ThreadPool::~ThreadPool() { StopHelpers(); }

void ThreadPool::StopHelpers() {
  stop_ = true;
  {
    const std::lock_guard lock(mutex_);
    generation_.fetch_add(1);
  }
  wake_.notify_all();
}

void ThreadPool::RunPart(int thread) const {
  const int64_t blocks = (job_.items + job_.grain - 1) / job_.grain;
  const int64_t threads = count();
  const int64_t begin = blocks * thread / threads * job_.grain;
  const int64_t end = std::min(blocks * (thread + 1) / threads * job_.grain, job_.items);
  if (begin < end) job_.call(job_.context, begin, end, thread);
}

void ThreadPool::RunJob() {
  unfinished_.store(static_cast<int>(helpers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_seq_cst);
  if (sleepers_.load(std::memory_order_seq_cst) > 0) {
    const std::lock_guard lock(mutex_);
    wake_.notify_all();
  }
  RunPart(0);
  for (uint64_t turn = 0; unfinished_.load(std::memory_order_acquire) != 0; ++turn) SpinTurn(turn);
}

void ThreadPool::HelperLoop(int thread) {
  uint64_t seen = 0;
  while (true) {
    uint64_t turn = 0;
    while (generation_.load(std::memory_order_acquire) == seen) {
      if (++turn < kTurnsBeforeSleep) {
        SpinTurn(turn);
        continue;
      }
      std::unique_lock lock(mutex_);
      sleepers_.fetch_add(1, std::memory_order_seq_cst);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_seq_cst) != seen; });
      sleepers_.fetch_sub(1, std::memory_order_seq_cst);
    }
    ++seen;
    if (stop_.load(std::memory_order_acquire)) return;
    RunPart(thread);
    unfinished_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace lockstep
