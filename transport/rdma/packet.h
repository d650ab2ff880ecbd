// What stands at the beginning of every packet of an RDMA link; see docs/wire.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "transport/frame.h"

namespace lockstep::rdma {

struct PacketHeader {
  uint64_t checksum = 0;  // XXH3-64 of what follows it, payload included; over RC 0
  // Which packet this is, counted over all that carry bytes (over RC: writes, too), from
  // kFirstSequence. Of an acknowledgement: that of the packet which comes next.
  uint32_t sequence = 0;
  uint32_t accepted = 0;  // packets of the receiver that arrived here in order
  uint32_t consumed = 0;  // of those, how many are read: their slots are free again
  uint32_t bytes = 0;     // of the payload, which follows
  // The put or message that the payload is a piece of, as in FrameHeader; pieces come in order.
  // Kind 0: none, this is an acknowledgement. Its tag is then kAgain if the packets from `accepted`
  // on are missed.
  FrameKind kind = FrameKind{0};
  uint32_t tag = 0;
  uint64_t offset = 0;
  uint64_t whole_bytes = 0;
  std::byte zeros[16] = {};  // payloads begin on lines; transport/frame.h says why
};
static_assert(sizeof(PacketHeader) == kLine);

// Sequence numbers begin here, so that every test sees them wrap.
inline constexpr uint32_t kFirstSequence = 0u - 1000;
inline constexpr FrameKind kAcknowledgement = FrameKind{0};
inline constexpr uint32_t kAgain = 1;

// Writes the checksum of a packet whose header and payload are in place.
void SealPacket(std::span<std::byte> packet);
// The header of what arrived; nothing if it is damaged: of a wrong length or, where packets are
// `sealed`, with a wrong checksum.
std::optional<PacketHeader> OpenPacket(std::span<const std::byte> packet, bool sealed);

}  // namespace lockstep::rdma
