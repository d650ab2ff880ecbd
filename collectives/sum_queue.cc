#include "collectives/sum_queue.h"

#include "runtime/base/check.h"

namespace lockstep {

SumQueue::SumQueue(Group& group) : group_(group), thread_([this] { Run(); }) {}

SumQueue::~SumQueue() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void SumQueue::Post(std::span<float> data, WireFormat wire) {
  {
    const std::lock_guard lock(mutex_);
    LOCKSTEP_CHECK(posted_ - taken_ < kMostUnderWay);
    sums_[posted_++ % kMostUnderWay] = {data, wire, OkStatus()};
  }
  changed_.notify_all();
}

Status SumQueue::Wait() {
  std::unique_lock lock(mutex_);
  LOCKSTEP_CHECK(taken_ < posted_);
  changed_.wait(lock, [this] { return taken_ < made_; });
  const Status status = sums_[taken_++ % kMostUnderWay].status;
  if (!status.ok()) {
    changed_.wait(lock, [this] { return made_ == posted_; });
    taken_ = posted_;
  }
  return status;
}

void SumQueue::Run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || made_ < posted_; });
    if (made_ == posted_) return;
    Sum& sum = sums_[made_ % kMostUnderWay];
    lock.unlock();
    sum.status = AllReduceSum(group_, sum.data, sum.wire);
    lock.lock();
    ++made_;
    changed_.notify_all();
  }
}

}  // namespace lockstep
