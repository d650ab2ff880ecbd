#include "collectives/backends.h"

namespace lockstep {

StatusOr<std::unique_ptr<Group>> MakeNcclGroup(GroupOptions, NcclOptions) {
  return UsageError(
      "this build has no NCCL: install the CUDA toolkit with nccl.h and configure with "
      "-DLOCKSTEP_NCCL=ON, or use --collective tcp, shm or rdma");
}

}  // namespace lockstep
