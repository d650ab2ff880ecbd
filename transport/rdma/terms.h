// What the two ends of an RDMA connection tell each other over the socket before they connect their
// queue pairs, and whether that fits. See docs/wire.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "transport/rdma/ports.h"
#include "transport/rdma/queue_pair.h"

namespace lockstep::rdma {

struct Terms {
  Mode mode = Mode::kReliable;
  uint32_t queue_pair = 0;    // its number
  uint32_t first_packet = 0;  // number of the first packet that this side sends (PSN), 24 bits
  Gid gid{};
  uint32_t mtu = 0;
  uint32_t megabits = 0;
  uint32_t slots = 0, slot_bytes = 0;
  uint64_t largest_message = 0;
  uint64_t window_bytes = 0;
  // Where the peer may write (kReliable): this side's view of its window.
  uint64_t view_address = 0;
  uint32_t view_key = 0;
  // For errors.
  std::string host, device, interface;
};

inline constexpr size_t kMostTermsBytes = 1024;

std::vector<std::byte> WriteTerms(const Terms& terms);
// Refuses what no peer of this version can say.
StatusOr<Terms> ParseTerms(std::span<const std::byte> bytes);
// Ok if the two can be connected; else a usage error with both values and the command that mends
// it. Both sides come to the same verdict.
Status CompareTerms(const Terms& own, const Terms& peer);
// Sends the own and receives the peer's, which does the same.
StatusOr<Terms> ExchangeTerms(int socket, const Terms& own, Deadline deadline);

}  // namespace lockstep::rdma
