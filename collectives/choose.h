// How a sum over ranks is made, by the size of the message. A pure function of what all ranks know,
// so they choose alike; and every choice gives the same bits.
#pragma once

#include <cstddef>

#include "collectives/group.h"

namespace lockstep {

enum class SumAlgorithm {
  kDirect,   // every rank reads every slot and adds all of it: one step, N - 1 slots to read
  kTwoStep,  // every rank adds its part of all slots, then reads the others' sums: 2 (N - 1) / N
};

struct SumPlan {
  SumAlgorithm algorithm = SumAlgorithm::kDirect;
  size_t chunks = 1;  // in which a slot (or a rank's part of it) travels: adding overlaps receiving
  size_t longest_bytes = 0;  // longer sums of ordinary memory are made in several exchanges
};

// `bytes`: of a rank's values on the wire.
SumPlan ChooseSum(const GroupTraits& traits, int ranks, size_t bytes);
// "direct", "two-step".
const char* NameOf(SumAlgorithm algorithm);

}  // namespace lockstep
