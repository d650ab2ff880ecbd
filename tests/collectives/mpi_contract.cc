// The group contract under a real mpirun: `mpirun -n N mpi_contract COLLECTIVE [MODE]`. Exit code 0
// when all holds. MODE "all" (default): every check. MODE "kill": the last rank kills itself amid
// exchanges; the others must name it and exit with 4. MODE "abort": rank 1 aborts with a model
// error; all must exit with 3.
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <string>

#include "collectives/bootstrap.h"
#include "runtime/base/clock.h"
#include "tests/collectives/checks.h"

namespace lockstep {
namespace {

Status Exchange(Group& group, const std::string& mode) {
  if (mode == "all") {
    LOCKSTEP_RETURN_IF_ERROR(CheckEverything(group));
    return CheckManyExchanges(group, 500);
  }
  for (int i = 0; i < 1'000'000; ++i) {
    if (i == 300 && mode == "kill" && group.rank() == group.size() - 1) raise(SIGKILL);
    if (i == 300 && mode == "abort" && group.rank() == 1)
      group.Abort(ModelError("tensor x is missing"));
    LOCKSTEP_RETURN_IF_ERROR(CheckAllReduce(group, 100, 3));
  }
  return InternalError("nobody stopped");
}

Status Run(const std::string& collective, const std::string& mode) {
  BootstrapOptions options;
  options.collective = collective;
  options.slot_bytes = 64 << 10;
  options.start_timeout_ms = 20'000;
  int local_rank = 0, local_size = 0;
  if (!DetectMpirun(&options.rank, &options.size, &local_rank, &local_size)) {
    return UsageError("start this with mpirun");
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Membership> membership, Bootstrap(options));
  if (membership->local_rank() != local_rank || membership->local_size() != local_size) {
    return InternalError("rank %d is %d of %d here, not %d of %d", options.rank,
                         membership->local_rank(), membership->local_size(), local_rank,
                         local_size);
  }
  Status result;
  {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, membership->OpenGroup());
    result = Exchange(*group, mode);
    // mpirun ends the others soon after the first one is gone: say it before anything else.
    if (!result.ok()) std::fprintf(stderr, "RESULT %s\n", MessageOf(result).c_str());
    if (!result.ok()) membership->Abort(result);
  }
  membership->Leave();
  return result;
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  // mpirun sends it to the survivors as soon as it notices a death; here they must still say who
  // died.
  signal(SIGTERM, SIG_IGN);
  const lockstep::Status status =
      lockstep::Run(argc > 1 ? argv[1] : "tcp", argc > 2 ? argv[2] : "all");
  if (!status.ok()) std::fprintf(stderr, "%s\n", lockstep::MessageOf(status).c_str());
  return lockstep::ExitCode(status);
}
