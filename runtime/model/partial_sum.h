// The sum over ranks that ends each half of a layer. A rank computes its partial result straight
// into its slot of the group, and what comes back is the left fold over the ranks, the same bits
// everywhere.
#pragma once

#include <cstdint>

#include "collectives/group.h"
#include "runtime/base/status.h"

namespace lockstep {

class PartialSum {
 public:
  // `scratch` holds at least as many floats as the largest sum.
  PartialSum(Group& group, float* scratch) : group_(group), scratch_(scratch) {}

  // Where this rank writes its `count` partial values.
  StatusOr<float*> Begin(int64_t count);
  // The sum of all ranks' values; valid until the next Begin. Waits for every rank.
  StatusOr<const float*> Reduce();

 private:
  Group& group_;
  float* scratch_;
  int64_t count_ = 0;
  float* partial_ = nullptr;  // the slot, or scratch_ when the values do not fit one
};

}  // namespace lockstep
