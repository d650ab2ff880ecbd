#include "collectives/rendezvous.h"

namespace lockstep {

StatusOr<std::unique_ptr<ProcessManager>> ConnectProcessManager(int64_t) {
  return UsageError(
      "this build has no PMIx: install libpmix-dev and configure with -DLOCKSTEP_PMIX=ON, or set "
      "--rendezvous host:port");
}

}  // namespace lockstep
