// How rows get from one stage of a pipeline to the next, and the outcome from the last one to rank
// 0: over our own transports (MakeTransportStageLink), or by gRPC (rpc/grpc_stage_link.h), so that
// the cost of the schedule and that of RPC can be told apart.
#pragma once

#include <array>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "runtime/engine/stage_message.h"
#include "runtime/model/stages.h"
#include "transport/delay.h"
#include "transport/fabric.h"

namespace lockstep {

// Messages that wait on each side before the sender has to: the next micro-batch is computed
// meanwhile.
inline constexpr size_t kStageQueue = 2;
// With those that are being filled and read.
static_assert(kStageBuffers == 2 * kStageQueue + 2);

// Used by one thread. Every wait ends by its deadline, by a lost rank, or by an abort; the error
// then names the rank.
class StageLink {
 public:
  virtual ~StageLink() = default;
  virtual const char* name() const = 0;  // "grpc", "tcp", "shm", "rdma"
  // To the next stage. Copies, and returns before the peer has it; waits while kStageQueue messages
  // are under way. `header.bytes` is the number of `bytes`.
  virtual Status Send(const StageHeader& header, std::span<const std::byte> bytes,
                      Deadline deadline) = 0;
  // The next message of the stage before, whose header must be `expected`, into *bytes.
  virtual Status Receive(const StageHeader& expected, Deadline deadline,
                         std::vector<std::byte>* bytes) = 0;
};

// The ends of a rank's stage link. Rows go from each rank of a stage to the rank of the same place
// in the next one, and outcomes from the first rank of the last stage to rank 0.
struct StagePeers {
  int rank = 0;
  int from = -1;  // who sends to this rank; -1: nobody
  int to = -1;    // to whom it sends; -1: to nobody
  bool sends_outcomes = false;
  bool receives_outcomes = false;
  std::vector<std::string> names;  // of all ranks: "rank 1 (spark-2, pid 4711)"
  bool verify = false;             // digests of what travels are sent and checked; on all ranks
  // OK while every rank is there; else why this one must stop. Any thread.
  std::function<Status()> health;
  // By which what is sent leaves later; null: none.
  std::shared_ptr<const AddedLatency> added_latency;
};
// Without names and health.
StagePeers PeersOf(int rank, int ranks, int stages);

// `peer` "sent nothing that was expected", say, until the deadline.
Status TooLate(const StagePeers& peers, int peer, const char* what);
// `peer` "closed the connection", say. A peer that closes may itself be the victim of another, so
// the control channel gets a moment to say who was first.
Status BrokenBy(const StagePeers& peers, int peer, const std::string& what);

// `peer` "sent no message", say: what came from it cannot be.
Status WrongFrom(const StagePeers& peers, int peer, const Status& what);
// The header and the bytes of a message of peers.from against what is due, or, where exchanges are
// verified, against the digest.
Status CheckHeader(const StagePeers& peers, const StageHeader& got, const StageHeader& expected);
Status CheckBytes(const StagePeers& peers, const StageHeader& header,
                  std::span<const std::byte> bytes);

// What waits to be sent, and the thread that sends it.
class StageOutbox {
 public:
  // Sends one message, on the outbox's thread; returns when it has left, and soon once stopping()
  // or an error of `peers.health()` says so.
  using SendOne = std::function<Status(const StageHeader&, std::span<const std::byte>)>;

  // `peers` outlives it.
  explicit StageOutbox(const StagePeers& peers) : peers_(peers) {}
  ~StageOutbox() { Stop(); }
  void Start(SendOne send_one);
  void Stop();
  bool stopping() const;
  // As StageLink::Send.
  Status Put(const StageHeader& header, std::span<const std::byte> bytes, Deadline deadline);

 private:
  struct Message {
    StageHeader header;
    std::vector<std::byte> bytes;
    int64_t leaves_ns = 0;  // where latency is added
  };
  void SendAll();
  // Until the first message may leave. A message's latency counts from when it could have left
  // without, so that several are under way at a time.
  void AwaitLatency(std::unique_lock<std::mutex>* lock);

  const StagePeers& peers_;
  SendOne send_one_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Message> queue_;
  std::vector<std::vector<std::byte>> spare_;  // buffers of messages that have left
  Status failure_;
  bool stopping_ = false;
  std::thread thread_;
};

// Over links: a message is its header and its bytes, each a message of the link. `rows` and
// `outcomes` are meshes of all ranks without windows: two, since what a rank sends to another and
// what it receives from it belong to different threads. `crowded` as Membership says.
StatusOr<std::unique_ptr<StageLink>> MakeTransportStageLink(StagePeers peers, const char* name,
                                                            Mesh rows, Mesh outcomes, bool crowded);

}  // namespace lockstep
