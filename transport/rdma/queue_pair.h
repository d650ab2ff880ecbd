// What a link asks of one connected pair of queues. VerbsQueuePair is that of an RDMA device; tests
// put a lossy one in memory in its place.
//
// Both sides have slots of kSlotBytes to send packets from and to receive them into. A packet lands
// in the oldest receive slot that the peer has given to the queue; a write lands in the peer's
// copy of this side's window and uses up a receive slot as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/status.h"

namespace lockstep::rdma {

// Packets and writes that a side may have under way, and how many acknowledgements beside them.
inline constexpr uint32_t kDataSlots = 64;
inline constexpr uint32_t kAckSlots = 8;
inline constexpr uint32_t kSlots = kDataSlots + kAckSlots;
// 20 KB, an exchange of GLM-4.7 in float32, fit into one packet.
inline constexpr uint32_t kSlotBytes = 32 << 10;

enum class Mode : uint8_t {
  kReliable = 1,    // RC: the device repeats what is lost; it can write into the peer's memory
  kUnreliable = 2,  // UC: packets may be lost; there are only packets
};

struct Completion {
  enum class Kind { kSent, kPacket, kWritten };
  Kind kind = Kind::kSent;
  uint32_t slot = 0;   // kPacket, kWritten: the receive slot that was used
  uint32_t bytes = 0;  // kPacket: its length; kWritten: of the last message of the write
  uint32_t tag = 0;    // kWritten
};

class QueuePair {
 public:
  virtual ~QueuePair() = default;
  virtual Mode mode() const = 0;
  virtual std::span<std::byte> send_slot(uint32_t slot) = 0;
  virtual std::span<std::byte> receive_slot(uint32_t slot) = 0;
  // The peer's window as it is seen here.
  virtual std::span<std::byte> view() = 0;

  // The first `bytes` of a send slot, which stays untouched until the call is completed. Sends and
  // writes travel in the order of their calls; each is completed (kSent) once, in that order.
  virtual Status Send(uint32_t slot, size_t bytes) = 0;
  // A range of the own window to the same place of the peer's view (kReliable only). It travels in
  // messages of at most largest_message() bytes, the last of which announces it.
  virtual Status Write(size_t offset, size_t bytes, uint32_t tag) = 0;
  virtual size_t largest_message() const = 0;
  // Gives a receive slot to the queue; at the beginning all are given.
  virtual Status Receive(uint32_t slot) = 0;
  // Fills in what was completed and returns how many; 0: nothing. An error is final.
  virtual StatusOr<size_t> Poll(std::span<Completion> completions) = 0;

  // For sleeping: Arm(), Poll() again, then wait until descriptor() is readable, then Disarm().
  virtual int descriptor() const = 0;
  virtual void Arm() = 0;
  virtual void Disarm() = 0;
};

}  // namespace lockstep::rdma
