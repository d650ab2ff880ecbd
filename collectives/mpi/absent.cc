#include "collectives/backends.h"

namespace lockstep {

StatusOr<std::unique_ptr<Group>> MakeMpiGroup(GroupOptions) {
  return UsageError(
      "this build has no MPI: install libopenmpi-dev and configure with -DLOCKSTEP_MPI=ON, or use "
      "--collective tcp or shm");
}

}  // namespace lockstep
