// Whether this machine has what tests over a real RDMA device need; tests/rdma/guest.py makes a
// machine that does.
#pragma once

#include <string>
#include <vector>

#include "transport/backends.h"

namespace lockstep::testing {

// An address of this machine that an RDMA port has; else why there is none.
inline StatusOr<std::string> RdmaAddress() {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<RdmaDevices> devices, OpenRdmaDevices("auto"));
  std::vector<std::string> addresses;
  for (const NetworkInterface& interface : ListInterfaces()) {
    addresses.insert(addresses.end(), interface.addresses.begin(), interface.addresses.end());
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> hosts, devices->Hosts(addresses));
  return hosts.front();
}

// Why a test over this transport or collective cannot run here; empty: it can.
inline std::string WhyNot(const std::string& transport) {
  if (transport.rfind("rdma", 0) != 0) return "";
  static const StatusOr<std::string> address = RdmaAddress();
  return address.ok() ? "" : MessageOf(address.status());
}

}  // namespace lockstep::testing
