// How a sum over ranks is made, by the size of the message. A pure function of what all ranks know,
// so they choose alike; and every choice gives the same bits.
#pragma once

#include <cstddef>
#include <span>

#include "collectives/group.h"

namespace lockstep {

enum class SumAlgorithm {
  kGather,   // rank 0 adds all slots and publishes the sum: two steps, but the fewest messages
  kDirect,   // every rank reads every slot and adds all of it: one step, N - 1 slots to read
  kTwoStep,  // every rank adds its part of all slots, then reads the others' sums: 2 (N - 1) / N
};

struct SumPlan {
  SumAlgorithm algorithm = SumAlgorithm::kDirect;
  size_t chunks = 1;  // in which a slot (or a rank's part of it) travels: adding overlaps receiving
  size_t longest_bytes = 0;  // longer sums of ordinary memory are made in several exchanges
};

// Of `count` values.
SumPlan ChooseSum(const GroupTraits& traits, int ranks, const SumLimits& limits, size_t count,
                  WireFormat wire = WireFormat::kF32);
inline SumPlan ChooseSum(const Group& group, size_t count, WireFormat wire) {
  return ChooseSum(group.traits(), group.size(), group.sum_limits(), count, wire);
}
// In two steps on a narrow wire the float32 sums of a rank's piece stand in its slot behind the
// packed values, which may still be on their way: here.
inline size_t SumsBegin(WireFormat wire, size_t count) {
  return (WireBytes(wire, count) + 63) / 64 * 64;
}
// If nobody has measured it. `crowded`: all ranks are on one machine and outnumber its cores, so
// that every message costs time that another rank wants.
SumLimits UsualSumLimits(int ranks, bool crowded = false);

// What a sum takes each way.
struct SumTimes {
  size_t bytes = 0;  // on the wire
  double gather_us = 0;
  double direct_us = 0;
  double two_step_us = 0;
};
// Limits at some of the sizes (ascending), 0 for none of them and SIZE_MAX for all: what loses
// least against the fastest way at each size, by their ratio. Of equals the lower limits.
SumLimits BestSumLimits(std::span<const SumTimes> measured);
// "gather", "direct", "two-step".
const char* NameOf(SumAlgorithm algorithm);

}  // namespace lockstep
