// The constructors of the groups. Callers outside this folder use Membership::OpenGroup().
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "collectives/lifeline.h"
#include "runtime/base/status.h"
#include "transport/fabric.h"

namespace lockstep {

struct GroupOptions {
  int rank = 0;
  int size = 1;
  size_t slot_bytes = size_t{1} << 20;
  int64_t exchange_timeout_ms = 30'000;
  // How long a wait inside a step spins before it yields; 0 where ranks outnumber cores.
  int64_t spin_us = 100;
  // Every put and message is checked with a digest of its bytes; links only, equal on all ranks.
  bool verify_exchanges = false;
  // Differs between groups that follow each other, equal on all ranks of one.
  uint32_t epoch = 0;
  std::vector<std::string> names;  // "rank 1 (spark-2, pid 4711)", by rank
  int first_rank = 0;  // the session's number of this group's rank 0, for what errors say is lost
  std::shared_ptr<Lifeline> lifeline;
};

// Over one link per peer. `name` is a literal: "tcp", "shm", "rdma" (FindTransport). The mesh's
// window is of LinkWindowBytes(slot_bytes).
StatusOr<std::unique_ptr<Group>> MakeLinkGroup(GroupOptions options, const char* name, Mesh mesh);
size_t LinkWindowBytes(size_t slot_bytes);
// Open MPI point-to-point; a usage error where it is not built. MPI's ranks must be the group's.
StatusOr<std::unique_ptr<Group>> MakeMpiGroup(GroupOptions options);
// What a group over NCCL needs besides.
struct NcclOptions {
  // This rank's place among the ranks of its machine, and their number: who takes which GPU.
  int local_rank = 0;
  int local_size = 1;
  int64_t start_timeout_ms = 60'000;
  // Messages do not go by NCCL, but by this group of the same ranks, with the same lifeline.
  std::unique_ptr<Group> messages;
  // Collective: every rank's text, by rank.
  std::function<StatusOr<std::vector<std::string>>(const std::string& text)> share;
};
// NCCL, loaded at run time; a usage error where it is not built, or has no library or GPU here.
// After a failure its communicator is gone: a new group makes another, with an id of its own.
StatusOr<std::unique_ptr<Group>> MakeNcclGroup(GroupOptions options, NcclOptions nccl);
// One rank; every wait is over at once.
StatusOr<std::unique_ptr<Group>> MakeSingleGroup(GroupOptions options);

}  // namespace lockstep
