#include "transport/rdma/ports.h"

#include <arpa/inet.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_join.h"

namespace lockstep::rdma {
namespace {

constexpr std::byte kMappedPrefix[12] = {
    {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, std::byte{0xff}, std::byte{0xff}};

std::string TextOf(const Gid& gid) {
  char text[INET6_ADDRSTRLEN] = {};
  const bool v4 = std::memcmp(gid.data(), kMappedPrefix, sizeof(kMappedPrefix)) == 0;
  inet_ntop(v4 ? AF_INET : AF_INET6, gid.data() + (v4 ? sizeof(kMappedPrefix) : 0), text,
            sizeof(text));
  return text;
}

// What keeps a port from being used for `wanted`; empty: nothing does.
std::string WhatLacks(const PortFacts& port, const Gid& wanted) {
  if (!port.ethernet) return "is InfiniBand; lockstep speaks RoCE v2 only";
  if (!port.active) {
    const std::string interface = port.gids.empty() ? "" : port.gids[0].interface;
    return "is down: check the cable" +
           (interface.empty() ? "" : ", or ip link set " + interface + " up");
  }
  std::vector<std::string> addresses;
  bool other_type = false;
  for (const GidFacts& item : port.gids) {
    other_type |= item.gid == wanted && item.type != GidType::kRoceV2;
    if (item.type == GidType::kRoceV2) addresses.push_back(TextOf(item.gid));
  }
  if (other_type) return "has the address for RoCE v1 only";
  if (addresses.empty()) return "has no RoCE v2 address: give its network interface an IP address";
  return "has " + absl::StrJoin(addresses, ", ");
}

Status NoPort(std::span<const PortFacts> ports, const std::vector<std::string>& addresses) {
  if (ports.empty()) {
    return UsageError(
        "this machine has no RDMA device (ibv_devices lists them); use --collective tcp");
  }
  std::vector<std::string> reasons;
  for (const PortFacts& port : ports) {
    const StatusOr<Gid> wanted = GidOfAddress(addresses.empty() ? "" : addresses.front());
    reasons.push_back(port.Name() + " " + WhatLacks(port, wanted.ok() ? *wanted : Gid{}));
  }
  return UsageError(
      "no RDMA port of this machine has an address of the ranks' connections (%s): %s; name the "
      "interface of the RDMA network with --interface, or use --collective tcp",
      absl::StrJoin(addresses, ", "), absl::StrJoin(reasons, "; "));
}

}  // namespace

std::string PortFacts::Name() const {
  const std::string interface = gids.empty() ? "" : gids[0].interface;
  const std::string name = absl::StrFormat("%s port %d", device, port);
  return interface.empty() ? name : absl::StrFormat("%s (%s)", name, interface);
}

StatusOr<Gid> GidOfAddress(const std::string& address) {
  Gid gid{};
  if (inet_pton(AF_INET6, address.c_str(), gid.data()) == 1) return gid;
  std::memcpy(gid.data(), kMappedPrefix, sizeof(kMappedPrefix));
  if (inet_pton(AF_INET, address.c_str(), gid.data() + sizeof(kMappedPrefix)) == 1) return gid;
  return InternalError("'%s' is not a numeric address", address);
}

StatusOr<Choice> ChoosePort(std::span<const PortFacts> ports, const std::string& address) {
  LOCKSTEP_ASSIGN_OR_RETURN(const Gid wanted, GidOfAddress(address));
  for (const PortFacts& port : ports) {
    if (!port.active || !port.ethernet) continue;
    for (const GidFacts& item : port.gids) {
      if (item.gid == wanted && item.type == GidType::kRoceV2) return Choice{&port, &item};
    }
  }
  return NoPort(ports, {address});
}

StatusOr<std::vector<std::string>> HostsWithPort(std::span<const PortFacts> ports,
                                                 const std::vector<std::string>& hosts) {
  std::vector<std::pair<uint32_t, std::string>> found;
  for (const std::string& host : hosts) {
    const StatusOr<Choice> choice = ChoosePort(ports, host);
    if (choice.ok()) found.emplace_back(choice->port->megabits, host);
  }
  if (found.empty()) return NoPort(ports, hosts);
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<std::string> result;
  for (auto& [speed, host] : found) result.push_back(std::move(host));
  return result;
}

}  // namespace lockstep::rdma
