// The constructors of the links. Both take a connected, authenticated, non-blocking socket.
#pragma once

#include <memory>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "transport/link.h"
#include "transport/socket.h"

namespace lockstep {

// Over a TCP socket (or any stream socket).
std::unique_ptr<Link> MakeTcpLink(UniqueFd socket);

// Over two rings in shared memory. `socket` is a Unix socket: it carries the memory's descriptor
// from the side that creates it to the other, wakes a sleeping reader, and shows the death of the
// peer.
StatusOr<std::unique_ptr<Link>> MakeShmLink(UniqueFd socket, bool create, Deadline deadline);

}  // namespace lockstep
