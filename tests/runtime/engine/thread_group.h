// A group whose ranks are threads of one process: the simplest thing that keeps Group's contract,
// for tests of what stands above it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "collectives/group.h"

namespace lockstep::testing {

// What the ranks share.
struct ThreadWorld {
  explicit ThreadWorld(int ranks)
      : slots(ranks), published(ranks * ranks, 0), ended(ranks, 0), mailboxes(ranks * ranks) {}
  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::vector<std::byte>> slots;
  std::vector<uint64_t> published;                             // parts, [from * ranks + to]
  std::vector<uint64_t> ended;                                 // exchanges, by rank
  std::vector<std::vector<std::vector<std::byte>>> mailboxes;  // [from * ranks + to], a queue
  Status reason;
};

class ThreadGroup final : public Group {
 public:
  ThreadGroup(std::shared_ptr<ThreadWorld> world, int rank)
      : Group(rank, static_cast<int>(world->slots.size())),
        world_(std::move(world)),
        expected_(size()),
        taken_(size(), 0) {}

  const GroupTraits& traits() const override {
    static const GroupTraits traits = {"threads", size_t{1} << 16, false, true, true};
    return traits;
  }
  StatusOr<std::span<std::byte>> Begin(size_t bytes) override {
    std::unique_lock lock(world_->mutex);
    LOCKSTEP_RETURN_IF_ERROR(Await(&lock, [&] {
      for (const uint64_t ended : world_->ended) {
        if (ended < exchange_) return false;
      }
      return true;
    }));
    world_->slots[rank()].resize(bytes);
    return slot_ = std::span(world_->slots[rank()]);
  }
  Status ExpectPart(int peer, SlotPart part) override {
    expected_[peer].push_back(part);
    return OkStatus();
  }
  Status PublishPart(int peer, SlotPart) override {
    const std::lock_guard lock(world_->mutex);
    ++world_->published[rank() * size() + peer];
    world_->changed.notify_all();
    return OkStatus();
  }
  StatusOr<std::span<const std::byte>> Wait(int peer) override {
    if (peer == rank()) return slot_;
    std::unique_lock lock(world_->mutex);
    const uint64_t number = taken_[peer]++;
    LOCKSTEP_RETURN_IF_ERROR(
        Await(&lock, [&] { return world_->published[peer * size() + rank()] > number; }));
    const SlotPart part = expected_[peer].at(number);
    return std::span<const std::byte>(world_->slots[peer]).subspan(part.offset, part.bytes);
  }
  Status End() override {
    const std::lock_guard lock(world_->mutex);
    world_->ended[rank()] = ++exchange_;
    world_->changed.notify_all();
    return OkStatus();
  }
  Status SendReceive(int to, std::span<const std::byte> data, int from, std::span<std::byte> buffer,
                     Patience) override {
    std::unique_lock lock(world_->mutex);
    if (to >= 0) world_->mailboxes[rank() * size() + to].emplace_back(data.begin(), data.end());
    world_->changed.notify_all();
    if (from < 0) return world_->reason;
    auto& mailbox = world_->mailboxes[from * size() + rank()];
    LOCKSTEP_RETURN_IF_ERROR(Await(&lock, [&] { return !mailbox.empty(); }));
    if (mailbox.front().size() != buffer.size()) return InternalError("lengths differ");
    if (!buffer.empty()) std::memcpy(buffer.data(), mailbox.front().data(), buffer.size());
    mailbox.erase(mailbox.begin());
    return OkStatus();
  }
  void Abort(const Status& reason) override {
    const std::lock_guard lock(world_->mutex);
    if (world_->reason.ok()) world_->reason = reason;
    world_->changed.notify_all();
  }

 private:
  template <typename Condition>
  Status Await(std::unique_lock<std::mutex>* lock, const Condition& condition) {
    if (!world_->changed.wait_for(*lock, std::chrono::seconds(60),
                                  [&] { return !world_->reason.ok() || condition(); })) {
      return InternalError("a rank did not answer within 60 s");
    }
    return world_->reason;
  }
  std::shared_ptr<ThreadWorld> world_;
  std::vector<std::vector<SlotPart>> expected_;  // of all exchanges, by peer
  std::vector<uint64_t> taken_;                  // how many of them were waited for
  uint64_t exchange_ = 0;
};

// Runs body(group) on `ranks` threads and returns when all are done.
template <typename Body>
void OnRanks(int ranks, const Body& body) {
  auto world = std::make_shared<ThreadWorld>(ranks);
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r) {
    threads.emplace_back([&, r] {
      ThreadGroup group(world, r);
      body(group);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace lockstep::testing
