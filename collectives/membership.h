// The membership of a group of more than one rank: the ranks, the control channel, and the groups
// opened on it.
#pragma once

#include <memory>

#include "collectives/bootstrap.h"
#include "collectives/rendezvous.h"

namespace lockstep {

// `manager` may be null (no mpirun).
std::unique_ptr<Membership> MakeMembership(const BootstrapOptions& options, std::string secret,
                                           Joined joined, std::unique_ptr<ProcessManager> manager);
// A process alone.
std::unique_ptr<Membership> MakeSingleMembership(const BootstrapOptions& options);

// Equal for the processes of one machine, different between machines of the same name.
std::string MachineId();

}  // namespace lockstep
