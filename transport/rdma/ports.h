// The RDMA ports of this machine as facts, and which one a connection takes: the one that has the
// connection's own IP address, by a GID of type RoCE v2. GIDs are looked up at each connection and
// never named by their index, which changes while a machine runs (an address more, a link that was
// down).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep::rdma {

using Gid = std::array<std::byte, 16>;

enum class GidType : uint8_t { kOther, kRoceV2 };

struct GidFacts {
  int index = 0;
  Gid gid{};
  GidType type = GidType::kOther;
  std::string interface;  // the network interface that it stands for; may be empty
};

struct PortFacts {
  std::string device;  // "mlx5_0"
  int port = 1;
  bool active = false;
  bool ethernet = false;       // else InfiniBand
  uint32_t mtu = 0;            // of RDMA packets: 256 to 4096
  uint32_t megabits = 0;       // 0: unknown
  size_t largest_message = 0;  // bytes
  std::vector<GidFacts> gids;
  std::string Name() const;  // "mlx5_0 port 1 (enp1s0f0)"
};

struct Choice {
  const PortFacts* port = nullptr;
  const GidFacts* gid = nullptr;
};

// The GID of a numeric address: an IPv6 address as it is, an IPv4 address mapped into it.
StatusOr<Gid> GidOfAddress(const std::string& address);
// The port and GID for connections from `address`; else a usage error that says what each port
// lacks. Points into `ports`.
StatusOr<Choice> ChoosePort(std::span<const PortFacts> ports, const std::string& address);
// Those of `hosts` for which there is one, those of faster ports first; else the same error.
StatusOr<std::vector<std::string>> HostsWithPort(std::span<const PortFacts> ports,
                                                 const std::vector<std::string>& hosts);

}  // namespace lockstep::rdma
