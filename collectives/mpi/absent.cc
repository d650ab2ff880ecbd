#include "collectives/backends.h"
#include "collectives/open_mpi.h"

namespace lockstep {
namespace {

Status Absent() {
  return UsageError(
      "this build has no MPI: install libopenmpi-dev and configure with -DLOCKSTEP_MPI=ON, or use "
      "--collective tcp or shm");
}

}  // namespace

StatusOr<std::unique_ptr<Group>> MakeMpiGroup(GroupOptions) { return Absent(); }

Status MpiAllReduceSum(std::span<float>) { return Absent(); }

}  // namespace lockstep
