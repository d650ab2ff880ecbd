// Opens links to all peers: a full mesh. Every rank listens; a rank connects to the ranks below it
// and accepts those above. Each connection proves in both directions that it belongs to this
// session (docs/wire.md); strangers and the slow are dropped without disturbing the others.
#pragma once

#include <array>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "transport/link.h"
#include "transport/socket.h"
#include "transport/window.h"

namespace lockstep {

// The transport of that name, as a string that lives on; null if there is none.
const char* FindTransport(std::string_view name);

using Proof = std::array<std::byte, 32>;

struct FabricOptions {
  int rank = 0;
  int size = 1;
  std::string transport = "tcp";   // tcp, shm, rdma
  std::string rdma_mode = "auto";  // rc, uc, auto
  // Of each rank's window; equal on all ranks. 0: no puts.
  size_t window_bytes = 0;
  // tcp: the addresses at which peers may find this rank, best first; it listens on all of them if
  // there are several, on the one otherwise. rdma: the same, of which those count that an RDMA port
  // has.
  std::vector<std::string> hosts;
  // Identifies the mesh among those of the same session.
  uint32_t mesh = 0;
  // A keyed digest (HMAC) under the session's key; the transport knows no cryptography.
  std::function<Proof(std::span<const std::byte>)> sign;
  // Random bytes for a challenge.
  std::function<std::array<std::byte, 16>()> nonce;
  // Asked while waiting: an error ends the wait. May be empty.
  std::function<Status()> interrupted;
  // "rank 1 (spark-2, pid 4711)", for errors.
  std::vector<std::string> names;
};

// One rank's ends of the mesh.
struct Mesh {
  Window window;                             // of this rank; outlives the links
  std::vector<std::unique_ptr<Link>> links;  // to rank r at [r], null at the own rank
};

class Fabric {
 public:
  virtual ~Fabric() = default;
  // What the other ranks need to find this one; travels over the control channel.
  virtual const std::string& address() const = 0;
  // Collective. `addresses[r]` is rank r's address().
  virtual StatusOr<Mesh> Connect(const std::vector<std::string>& addresses, Deadline deadline) = 0;
};

// Listens, and allocates the window. A refusal names the address.
StatusOr<std::unique_ptr<Fabric>> OpenFabric(FabricOptions options);

}  // namespace lockstep
