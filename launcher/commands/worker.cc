// lockstep worker: ranks 1.. of a cluster, started by hand on their nodes. They serve whatever rank
// 0 runs.
#include "launcher/commands/commands.h"
#include "launcher/commands/generation.h"
#include "launcher/session.h"

namespace lockstep {

Status WorkerCommand(const Options& options) {
  LOCKSTEP_RETURN_IF_ERROR(CheckServing(options));
  LOCKSTEP_ASSIGN_OR_RETURN(const TextSession opened,
                            OpenTextSession(options, {.worker = true, .measure_memory = true}));
  return opened.session->Close(WorkThroughLosses(
      *opened.session, options.drain_timeout_ms + kEndAtOnceMs, opened.constraints.get()));
}

}  // namespace lockstep
