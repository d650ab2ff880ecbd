// A link over a queue pair. See docs/wire.md, "RDMA".
#pragma once

#include <memory>
#include <span>

#include "transport/link.h"
#include "transport/rdma/queue_pair.h"
#include "transport/socket.h"

namespace lockstep::rdma {

// `socket` carries nothing any more; its end shows the death of the peer. `window` outlives the
// link.
std::unique_ptr<Link> MakeLinkOver(std::unique_ptr<QueuePair> queue_pair, UniqueFd socket,
                                   std::span<const std::byte> window, LinkPath path = {});

}  // namespace lockstep::rdma
