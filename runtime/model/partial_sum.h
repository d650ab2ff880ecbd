// The sum over ranks that ends each half of a layer. A rank computes its partial result straight
// into its slot of the group, and what comes back is the left fold over the ranks, the same bits
// everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

#include "collectives/group.h"
#include "runtime/base/status.h"

namespace lockstep {

class PartialSum {
 public:
  // The slots that sums of `count` values need.
  static size_t SlotBytes(int64_t count);

  // `scratch` holds at least as many floats as the largest sum, and so do the group's slots.
  PartialSum(Group& group, float* scratch) : group_(group), scratch_(scratch) {}

  // Where this rank writes its `count` partial values.
  StatusOr<float*> Begin(int64_t count);
  // The sum of all ranks' values, each rounded for the wire; valid until the next Begin. Waits for
  // every rank. Where one rank has the values and the others zeros, nothing should be rounded.
  StatusOr<const float*> Reduce(WireFormat wire = WireFormat::kF32);

 private:
  Group& group_;
  float* scratch_;
  int64_t count_ = 0;
};

}  // namespace lockstep
