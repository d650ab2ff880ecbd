// A group of ranks that compute every layer together. One backend object per group: links (tcp,
// shm, rdma), mpi, nccl, or a rank alone (single).
//
// The primitive is the *exchange*: every rank fills its own slot, publishes it, and reads the slots
// of all others.
//     slot = Begin(bytes); fill slot; Publish(); for each peer: Wait(peer) -> readable bytes;
//     End();
// A slot can also be published in parts, each to whom it concerns and as soon as it is filled:
//     Begin; ExpectPart(peer, part) ...; PublishPart(peer, part) ...; Wait(peer) ...; End
// All ranks call the same exchanges in the same order with the same sizes, and what one expects of
// another is what that one publishes to it, in the same order. A slot is used again two exchanges
// later: no rank may be able to end an exchange before all others have begun it. Everything else -
// sums, gathers, barriers - is a free function over it, written once, so that every backend gives
// the same bits: a sum is the left fold of the slots in rank order, in float32.
//
// A group is used by one thread at a time, except Abort(), which any thread may call. Every wait
// ends by the group's exchange timeout, by a lost peer, or by an abort; the error then names the
// rank.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "collectives/wire_format.h"
#include "runtime/base/status.h"

namespace lockstep {

struct GroupTraits {
  const char* name;  // "tcp", "shm", "rdma", "mpi", "nccl", "single"
  size_t
      slot_bytes;  // largest exchange; longer messages are cut into several by the functions below
  bool reads_in_place;  // Wait returns the peer's own slot (shm), not a copy
  // False (nccl): a slot travels to all others alike, in one part from its beginning.
  bool slots_in_parts;
  // False (mpi, nccl): a library chooses how SumInAnyOrder adds, by the length of the sum and more,
  // so that an element's bits may depend on the others, and on the run.
  bool any_order_is_fixed;
};

// In which order the ranks' values are added.
enum class SumOrder {
  kRank,  // 0, 1, 2, ...: the same bits from every backend and every algorithm
  kAny,   // with the fewest messages: the same bits on all ranks, but others elsewhere
};

// Up to how many bytes on the wire a sum is made in which way (choose.h).
struct SumLimits {
  size_t gathered_bytes = 0;       // by rank 0, for all
  size_t direct_bytes = SIZE_MAX;  // in one step, by every rank; longer ones in two steps
};

// Bytes [offset, offset + bytes) of a slot.
struct SlotPart {
  size_t offset = 0;
  size_t bytes = 0;
};
// Parts that one rank publishes to another within one exchange, at most.
inline constexpr size_t kMostParts = 32;

// How long a receive may take.
enum class Patience {
  kStep,  // inside a step: the exchange timeout; spins
  kIdle,  // between requests: as long as the peers are alive; sleeps
};

class Group {
 public:
  virtual ~Group() = default;
  int rank() const { return rank_; }
  int size() const { return size_; }
  virtual const GroupTraits& traits() const = 0;

  // This rank's slot for the next exchange, `bytes` long (at most traits().slot_bytes, equal on all
  // ranks), 64-byte aligned. Valid until End(). At most one exchange is open at a time.
  virtual StatusOr<std::span<std::byte>> Begin(size_t bytes) = 0;
  // The next part of `peer`'s slot that this rank is going to wait for. Before it is waited for,
  // best before this rank publishes.
  virtual Status ExpectPart(int peer, SlotPart part) = 0;
  // This part of the own slot is filled; `peer` may see it. It must not change any more.
  virtual Status PublishPart(int peer, SlotPart part) = 0;
  // The next expected part of `peer`'s slot, readable until End(). The own rank's is the whole
  // slot.
  virtual StatusOr<std::span<const std::byte>> Wait(int peer) = 0;
  // What was expected is read; the slots may be used again.
  virtual Status End() = 0;

  // This rank's slot of the open exchange.
  std::span<std::byte> slot() const { return slot_; }
  // How sums are made. What ranks publish follows from it: it is set on all of them alike, between
  // exchanges.
  const SumLimits& sum_limits() const { return sum_limits_; }
  void set_sum_limits(const SumLimits& limits) { sum_limits_ = limits; }
  // The whole slot, from everyone and to everyone.
  Status Publish();
  // Set on all ranks alike, between exchanges. Sums on a narrow wire are made in rank order anyway.
  SumOrder sum_order() const { return sum_order_; }
  virtual void set_sum_order(SumOrder order);
  // first_ranks[r]: the first rank on rank r's machine, its leader, which alone talks with other
  // machines in sums in any order. Unless said, every rank is its own. Set on all ranks alike.
  void set_machines(std::span<const int> first_ranks);

  // Sends to one rank while receiving from another (either may be absent: rank -1 with an empty
  // span). Lengths agree on both sides. Safe against deadlock for any size when all ranks call it
  // in matching pairs.
  virtual Status SendReceive(int to, std::span<const std::byte> data, int from,
                             std::span<std::byte> buffer, Patience patience) = 0;

  // data[i] becomes the sum over ranks, float32, added in any order. No exchange is open, and
  // sum_order() is kAny. At most traits().slot_bytes. Here by messages (sum_any_order.cc); backends
  // whose library adds override it.
  virtual Status SumInAnyOrder(std::span<float> data);

  // Gives up: tells all ranks why, ends pending and later calls with that reason. The first reason
  // wins.
  virtual void Abort(const Status& reason) = 0;

  Status Send(int to, std::span<const std::byte> data, Patience patience = Patience::kStep) {
    return SendReceive(to, data, -1, {}, patience);
  }
  Status Receive(int from, std::span<std::byte> buffer, Patience patience = Patience::kStep) {
    return SendReceive(-1, {}, from, buffer, patience);
  }

 protected:
  Group(int rank, int size);
  std::span<std::byte> slot_;  // what Begin returned

 private:
  int rank_;
  int size_;
  SumLimits sum_limits_;
  SumOrder sum_order_ = SumOrder::kRank;
  std::vector<int> machine_;     // the ranks of this one's machine, the leader first
  std::vector<int> leaders_;     // of all machines, ascending
  std::vector<float> received_;  // by SumInAnyOrder, as long as a slot
};

// Ends an exchange of floats that Begin opened and whose slot is filled: sum[i] = left fold over
// ranks 0, 1, 2, ... of their slot's [i], float32. The one place where ranks' values are added
// (sum.cc), so every backend, every algorithm (choose.h) and every caller gets the same bits. Needs
// at least two ranks. `wire`, the same on all ranks, is what each rank's values are rounded to
// before; the slot is no longer the caller's. Where the group's sum_order() is kAny and the wire is
// float32, SumInAnyOrder adds.
Status SumSlots(Group& group, std::span<float> sum, WireFormat wire = WireFormat::kF32);
// The same for values in ordinary memory and of any length: data[i] becomes the sum over ranks.
Status AllReduceSum(Group& group, std::span<float> data, WireFormat wire = WireFormat::kF32);
// all = the ranks' `mine` one after another; all.size() == size * mine.size(), sizes equal on all
// ranks.
Status AllGather(Group& group, std::span<const std::byte> mine, std::span<std::byte> all);
// Root's data to everyone; sizes equal on all ranks. Patience is that of the receivers.
Status Broadcast(Group& group, std::span<std::byte> data, int root,
                 Patience patience = Patience::kStep);
// A message whose length only the root knows. Refused above `limit_bytes`.
Status BroadcastMessage(Group& group, std::vector<std::byte>* message, int root, Patience patience,
                        size_t limit_bytes = size_t{256} << 20);
// Rank r receives sends[r] of every rank s into receives[s]; sizes match pairwise (sends[r] here =
// receives[me] there).
Status AllToAll(Group& group, std::span<const std::span<const std::byte>> sends,
                std::span<const std::span<std::byte>> receives,
                Patience patience = Patience::kStep);
// Returns when all ranks have called it.
Status Barrier(Group& group);

}  // namespace lockstep
