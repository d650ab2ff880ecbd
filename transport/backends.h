// The constructors of the links. Each takes a connected, authenticated, non-blocking socket and the
// window of this rank, which must outlive the link; the peer's is as long.
#pragma once

#include <memory>
#include <span>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "transport/link.h"
#include "transport/socket.h"
#include "transport/window.h"

namespace lockstep {

// Over a TCP socket (or any stream socket).
StatusOr<std::unique_ptr<Link>> MakeTcpLink(UniqueFd socket, std::span<const std::byte> window);

// Through memory that both processes map: each reads the window of the other where it is. `window`
// is of Window::Share (or empty). `socket` is a Unix socket: it carries the descriptors of the
// memory, wakes a sleeping peer, and shows the death of the peer. One of the two sides creates the
// rings and waits for the other, so both must be called at the same time.
StatusOr<std::unique_ptr<Link>> MakeShmLink(UniqueFd socket, const Window& window, bool create,
                                            Deadline deadline);

}  // namespace lockstep
