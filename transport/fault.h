// A link that misbehaves, for tests: around any link, drawn from a seed and counted in calls, so
// that it does the same again. Whatever it does, the layer above gives either the right result or
// an error that names the peer.
#pragma once

#include <cstdint>
#include <memory>

#include "transport/link.h"

namespace lockstep {

struct FaultOptions {
  uint64_t seed = 1;
  // Puts and messages are held back for up to so many polls before they leave, in their order, and
  // what is complete is reported up to as many polls late: puts, arrivals, sends and receives each
  // on their own, so that they change places.
  uint32_t most_polls_late = 0;
  // Longer ones are held back longer; 0: no slower than short ones.
  uint64_t bytes_per_poll = 0;
  // From the put or message of this number on (0 is the first, counted together; -1: never) ...
  int64_t cut_at = -1;      // ... the connection is closed,
  int64_t silent_at = -1;   // ... nothing leaves any more, without an error,
  int64_t corrupt_at = -1;  // ... or one bit of every incoming one is wrong.
};

std::unique_ptr<Link> MakeFaultyLink(std::unique_ptr<Link> inner, const FaultOptions& options);

}  // namespace lockstep
