// What Open MPI itself does, to compare with: lockstep computes nothing by it, because its sums
// come in an order that it does not promise.
#pragma once

#include <span>

#include "runtime/base/status.h"

namespace lockstep {

// MPI_Allreduce in place over all ranks of mpirun. A group of the transport mpi must have been
// opened before; a usage error where MPI is not built. Waits without a deadline: not for serving.
Status MpiAllReduceSum(std::span<float> data);

}  // namespace lockstep
