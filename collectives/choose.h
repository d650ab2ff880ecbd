// How a sum over ranks is made, by the size of the message. A pure function of what all ranks know,
// so they choose alike; and every choice gives the same bits.
#pragma once

#include <cstddef>
#include <span>

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

// Of `count` values; `longest_direct_bytes` as Group has it.
SumPlan ChooseSum(const GroupTraits& traits, int ranks, size_t longest_direct_bytes, size_t count,
                  WireFormat wire = WireFormat::kF32);
inline SumPlan ChooseSum(const Group& group, size_t count, WireFormat wire) {
  return ChooseSum(group.traits(), group.size(), group.longest_direct_bytes(), count, wire);
}
// In two steps on a narrow wire the float32 sums of a rank's piece stand in its slot behind the
// packed values, which may still be on their way: here.
inline size_t SumsBegin(WireFormat wire, size_t count) {
  return (WireBytes(wire, count) + 63) / 64 * 64;
}
// Where the second step begins to pay, if nobody has measured it.
size_t UsualDirectBytes(int ranks);

// What a sum takes either way.
struct SumTimes {
  size_t bytes = 0;  // on the wire
  double direct_us = 0;
  double two_step_us = 0;
};
// The largest of the sizes (ascending) up to which one step should be taken, 0 for none of them and
// SIZE_MAX for all: what loses least against the faster way at each size, by their ratio.
size_t BestDirectBytes(std::span<const SumTimes> measured);
// "direct", "two-step".
const char* NameOf(SumAlgorithm algorithm);

}  // namespace lockstep
