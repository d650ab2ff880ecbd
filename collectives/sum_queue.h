// Sums over ranks beside the computation: Post() says which, a thread of its own makes them in that
// order, Wait() takes the oldest back. From the first Post() until nothing is under way any more
// the group belongs to that thread. All ranks post the same sums in the same order.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <span>
#include <thread>

#include "collectives/group.h"

namespace lockstep {

class SumQueue {
 public:
  static constexpr uint64_t kMostUnderWay = 2;

  // `group` outlives the queue. Throws std::system_error where the system allows no more threads.
  explicit SumQueue(Group& group);
  // What is still under way ends first; every wait in it has the group's timeout.
  ~SumQueue();
  SumQueue(const SumQueue&) = delete;
  SumQueue& operator=(const SumQueue&) = delete;

  // data[i] is to become the sum over ranks, as AllReduceSum says; nobody touches it until it is
  // waited for. At most kMostUnderWay sums. Allocates nothing.
  void Post(std::span<float> data, WireFormat wire);
  // Until the oldest sum under way is made, or cannot be any more: every wait inside a sum ends by
  // the group's exchange timeout. After an error nothing is under way.
  Status Wait();

 private:
  struct Sum {
    std::span<float> data;
    WireFormat wire = WireFormat::kF32;
    Status status;
  };
  void Run();

  Group& group_;
  std::mutex mutex_;
  std::condition_variable changed_;
  // Numbers since the start; number n stands in sums_[n % kMostUnderWay].
  uint64_t posted_ = 0, made_ = 0, taken_ = 0;
  Sum sums_[kMostUnderWay];
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace lockstep
