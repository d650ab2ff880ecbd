#include "runtime/engine/stage_link.h"

#include <sched.h>

#include <chrono>
#include <utility>

#include "runtime/base/digest.h"

namespace lockstep {
namespace {

constexpr int kGraceMs = 300;
constexpr int kLookMs = 20;
// A sleep may last so much longer than it was asked to.
constexpr int64_t kSleepSlackNs = 200'000;

}  // namespace

StagePeers PeersOf(int rank, int ranks, int stages) {
  const int width = ranks / stages;
  const int stage = rank / width;
  const int last = (stages - 1) * width;  // the first rank of the last stage
  StagePeers peers;
  peers.rank = rank;
  if (stage > 0) {
    peers.from = rank - width;
  } else if (rank == 0) {
    peers.from = last;
    peers.receives_outcomes = true;
  }
  if (stage + 1 < stages) {
    peers.to = rank + width;
  } else if (rank == last) {
    peers.to = 0;
    peers.sends_outcomes = true;
  }
  return peers;
}

Status TooLate(const StagePeers& peers, int peer, const char* what) {
  return WithLostRank(
      PeerLostError("%s %s in time, although it is connected: it is stuck, stopped or much slower "
                    "than %s; see --exchange-timeout-ms",
                    peers.names[peer], what, peers.names[peers.rank]),
      peer);
}

Status BrokenBy(const StagePeers& peers, int peer, const std::string& what) {
  for (int waited_ms = 0; waited_ms < kGraceMs; waited_ms += 10) {
    LOCKSTEP_RETURN_IF_ERROR(peers.health());
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  LOCKSTEP_RETURN_IF_ERROR(peers.health());
  return WithLostRank(PeerLostError("%s %s", peers.names[peer], what), peer);
}

Status WrongFrom(const StagePeers& peers, int peer, const Status& what) {
  return WithLostRank(PeerLostError("%s %s", peers.names[peer], MessageOf(what)), peer);
}

Status CheckHeader(const StagePeers& peers, const StageHeader& got, const StageHeader& expected) {
  const Status due = CheckStageHeader(got, expected, peers.names[peers.from]);
  return due.ok() ? due : WithLostRank(due, peers.from);
}

Status CheckBytes(const StagePeers& peers, const StageHeader& header,
                  std::span<const std::byte> bytes) {
  if (!peers.verify || header.digest == Digest64(bytes)) return OkStatus();
  return WithLostRank(
      PeerLostError("%s sent other bytes than arrived at %s in part %d of step %d: the link "
                    "between them, or the memory of one of them, changes data",
                    peers.names[peers.from], peers.names[peers.rank], header.part, header.step),
      peers.from);
}

void StageOutbox::Start(SendOne send_one) {
  send_one_ = std::move(send_one);
  thread_ = std::thread([this] { SendAll(); });
}

void StageOutbox::Stop() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) thread_.join();
}

bool StageOutbox::stopping() const {
  const std::lock_guard lock(mutex_);
  return stopping_;
}

Status StageOutbox::Put(const StageHeader& header, std::span<const std::byte> bytes,
                        Deadline deadline) {
  std::unique_lock lock(mutex_);
  while (queue_.size() >= kStageQueue && failure_.ok()) {
    LOCKSTEP_RETURN_IF_ERROR(peers_.health());
    if (deadline.Passed()) return TooLate(peers_, peers_.to, "took nothing that was sent");
    changed_.wait_for(lock, std::chrono::milliseconds(kLookMs));
  }
  LOCKSTEP_RETURN_IF_ERROR(failure_);
  Message message;
  message.header = header;
  if (peers_.verify) message.header.digest = Digest64(bytes);
  if (!spare_.empty()) {
    message.bytes = std::move(spare_.back());
    spare_.pop_back();
  }
  message.bytes.assign(bytes.begin(), bytes.end());
  queue_.push_back(std::move(message));
  changed_.notify_all();
  return OkStatus();
}

void StageOutbox::AwaitLatency(std::unique_lock<std::mutex>* lock) {
  while (!stopping_) {
    const int64_t now_ns = NowNs();
    for (Message& message : queue_) {
      if (message.leaves_ns == 0) message.leaves_ns = now_ns + peers_.added_latency->ns;
    }
    const int64_t left_ns = queue_.front().leaves_ns - now_ns;
    if (left_ns <= 0) return;
    if (left_ns > kSleepSlackNs) {
      changed_.wait_for(*lock, std::chrono::nanoseconds(left_ns - kSleepSlackNs));
    } else {
      lock->unlock();
      (void)sched_yield();
      lock->lock();
    }
  }
}

void StageOutbox::SendAll() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
    if (peers_.added_latency != nullptr) AwaitLatency(&lock);
    if (stopping_) return;
    // Stays in the queue until it has left; nothing else touches the first one.
    const Message& message = queue_.front();
    lock.unlock();
    const Status sent = send_one_(message.header, message.bytes);
    lock.lock();
    if (!sent.ok()) {
      failure_ = sent;
      changed_.notify_all();
      return;
    }
    spare_.push_back(std::move(queue_.front().bytes));
    queue_.pop_front();
    changed_.notify_all();
  }
}

}  // namespace lockstep
