// The compute threads of one rank: the caller and count-1 helpers that spin between the loops of a
// step and sleep between steps. Work is split into contiguous, fixed parts, so which thread does
// what never depends on timing.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

namespace lockstep {

class ThreadPool {
 public:
  // `count` >= 1 threads including the caller's. If `cpus` are as many, helper i stays on cpus[i]:
  // nothing wakes it on a core where it would wait for another one. With fewer threads than CPUs
  // nobody is bound, since another pool may share them. The caller's own thread is left alone, as
  // those that it starts would inherit its CPU. Throws std::system_error where the system allows no
  // more threads, as every start of a thread does (launcher/commands/main.cc).
  explicit ThreadPool(int count, std::span<const int> cpus = {});
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int count() const { return static_cast<int>(helpers_.size()) + 1; }

  // Runs body(begin, end, thread) on disjoint ranges covering [0, items), each a multiple of
  // `grain` long but the last, and returns when all are done. Not reentrant; one caller at a time.
  // Allocates nothing.
  template <typename Body>
  void ParallelFor(int64_t items, int64_t grain, const Body& body) {
    if (items <= 0) return;
    if (helpers_.empty() || items <= grain) {
      body(int64_t{0}, items, 0);
      return;
    }
    job_ = Job{[](const void* context, int64_t begin, int64_t end, int thread) {
                 (*static_cast<const Body*>(context))(begin, end, thread);
               },
               &body, items, grain};
    RunJob();
  }

 private:
  struct Job {
    void (*call)(const void* context, int64_t begin, int64_t end, int thread) = nullptr;
    const void* context = nullptr;
    int64_t items = 0;
    int64_t grain = 1;
  };
  void StopHelpers();
  void RunJob();
  void RunPart(int thread) const;
  void HelperLoop(int thread);

  Job job_;
  std::vector<std::jthread> helpers_;
  alignas(64) std::atomic<uint64_t> generation_{0};
  alignas(64) std::atomic<int> unfinished_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_;
};

// One polite turn of a spin loop: pause while `turn` is small, then yield to the scheduler.
void SpinTurn(uint64_t turn);

}  // namespace lockstep
