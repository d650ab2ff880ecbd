// The sum over ranks that ends each half of a layer. A rank computes its partial result straight
// into its slot of the group, and what comes back is the left fold over the ranks, the same bits
// everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/kernels/backend.h"

namespace lockstep {

class PartialSum {
 public:
  // The slots that sums of `count` values need.
  static size_t SlotBytes(int64_t count);

  // `scratch` holds at least as many floats as the largest sum, and so do the group's slots.
  // The values come from ops on `queue`.
  PartialSum(Group& group, const kernels::Backend& ops, kernels::Queue& queue, float* scratch)
      : group_(group), ops_(ops), queue_(queue), scratch_(scratch) {}

  // Where this rank's ops write its `count` partial values.
  StatusOr<float*> Begin(int64_t count);
  // The sum of all ranks' values, each rounded for the wire; valid until the next Begin. Waits for
  // every rank, and before for its own ops. Where one rank has the values and the others zeros,
  // nothing should be rounded. A rank alone exchanges nothing: for ops that follow the sum is
  // there, for the host it is when the queue is finished.
  StatusOr<const float*> Reduce(WireFormat wire = WireFormat::kF32);

 private:
  Group& group_;
  const kernels::Backend& ops_;
  kernels::Queue& queue_;
  float* scratch_;
  int64_t count_ = 0;
};

}  // namespace lockstep
