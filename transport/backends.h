// The constructors of the links. Each takes a connected, authenticated, non-blocking socket and the
// window of this rank, which must outlive the link; the peer's is as long.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

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

// The RDMA devices of this machine, for the links of one mesh.
class RdmaDevices {
 public:
  virtual ~RdmaDevices() = default;
  // Those of `hosts` that are addresses of a port, the fastest first; a usage error that describes
  // the ports when there is none.
  virtual StatusOr<std::vector<std::string>> Hosts(const std::vector<std::string>& hosts) = 0;
  // Over the port that has the socket's own address. Both sides must be called at the same time.
  // The socket carries the terms and later shows the death of the peer. `window` is the same in
  // every call.
  virtual StatusOr<std::unique_ptr<Link>> MakeLink(UniqueFd socket,
                                                   std::span<const std::byte> window,
                                                   Deadline deadline) = 0;
};

// `mode`: rc, uc or auto (Options::rdma_mode). A usage error where this build or machine has no
// RDMA.
StatusOr<std::unique_ptr<RdmaDevices>> OpenRdmaDevices(const std::string& mode);

}  // namespace lockstep
