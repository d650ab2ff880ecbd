// The group over a table of functions that the caller chooses: the libraries of this machine, or
// those of a test.
#pragma once

#include <memory>

#include "collectives/backends.h"
#include "collectives/nccl/nccl_library.h"

namespace lockstep::nccl {

// `library` outlives the process's threads.
StatusOr<std::unique_ptr<Group>> MakeGroup(const Library& library, GroupOptions options,
                                           NcclOptions nccl);

// What ranks tell each other before there is a communicator: "nccl 22809 0a1b...", the version of
// NCCL and, from rank 0, the communicator's id. The others send "nccl 22809 -".
std::string EncodeHello(int version, const ncclUniqueId* id);
// All ranks' texts, of which names[r] sent texts[r], to rank 0's id. An error names who differs.
StatusOr<ncclUniqueId> DecodeHellos(std::span<const std::string> texts,
                                    std::span<const std::string> names);

}  // namespace lockstep::nccl
