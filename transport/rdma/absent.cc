#include "transport/backends.h"

namespace lockstep {

StatusOr<std::unique_ptr<RdmaDevices>> OpenRdmaDevices(const std::string&) {
  return UsageError(
      "this build has no RDMA: install libibverbs-dev and configure with -DLOCKSTEP_RDMA=ON, or "
      "use --collective tcp");
}

}  // namespace lockstep
