#include "collectives/choose.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace lockstep {
namespace {

// A chunk should still be in the cache of the core that received or filled it when it is added.
constexpr size_t kChunkBytes = 128 << 10;
// Where slots are read in place: ordinary memory is copied into the slot, which should stay in the
// cache until the peer has read it.
constexpr size_t kLongestInPlaceBytes = 256 << 10;

// Few blocks, or a short rest, may leave too little behind the packed values.
bool HasRoomForSums(WireFormat wire, size_t ranks, size_t count) {
  if (wire == WireFormat::kF32) return true;
  const size_t blocks = (count + kWireBlock - 1) / kWireBlock;
  const size_t longest_piece = (blocks + ranks - 1) / ranks * kWireBlock;
  return SumsBegin(wire, count) + longest_piece * sizeof(float) <= count * sizeof(float);
}

size_t Chunks(size_t bytes, size_t most) {
  return std::clamp<size_t>((bytes + kChunkBytes - 1) / kChunkBytes, 1, most);
}

}  // namespace

// With two ranks both algorithms move the same bytes, and one step waits once. With more, the
// second wait costs about as much as 32 KB more to move (measured on 4 ranks, 2026-11-21). Four
// ranks on two cores added 20 KB by rank 0 in half of the time that one step took, over TCP and
// through shared memory, and up to 128 KB it was the fastest way (2026-11-28).
SumLimits UsualSumLimits(int ranks, bool crowded) {
  if (ranks <= 2) return {};
  return {.gathered_bytes = crowded ? size_t{128} << 10 : 0, .direct_bytes = size_t{32} << 10};
}

SumPlan ChooseSum(const GroupTraits& traits, int ranks, const SumLimits& limits, size_t count,
                  WireFormat wire) {
  const size_t bytes = WireBytes(wire, count);
  SumPlan plan;
  plan.longest_bytes = traits.slot_bytes;
  if (traits.reads_in_place) {
    plan.longest_bytes = std::min(plan.longest_bytes, kLongestInPlaceBytes);
  }
  if (!traits.slots_in_parts) return plan;
  if (bytes <= limits.gathered_bytes) {
    plan.algorithm = SumAlgorithm::kGather;
    // Float32 sums would overwrite packed values that are still to be added.
    if (wire == WireFormat::kF32) plan.chunks = Chunks(bytes, kMostParts);
  } else if (bytes > limits.direct_bytes &&
             HasRoomForSums(wire, static_cast<size_t>(ranks), count)) {
    plan.algorithm = SumAlgorithm::kTwoStep;
    // A rank publishes each chunk of its part twice: what it has, and the sum.
    plan.chunks = Chunks(bytes / static_cast<size_t>(ranks), kMostParts / 2);
  } else {
    plan.chunks = Chunks(bytes, kMostParts);
  }
  return plan;
}

SumLimits BestSumLimits(std::span<const SumTimes> measured) {
  const size_t sizes = measured.size();
  const auto limit = [&](size_t count) {
    return count == 0 ? 0 : count == sizes ? SIZE_MAX : measured[count - 1].bytes;
  };
  // The first `gathered` sizes by rank 0, from there to `direct` in one step.
  SumLimits best = {.gathered_bytes = 0, .direct_bytes = 0};
  double least = INFINITY;
  for (size_t gathered = 0; gathered <= sizes; ++gathered) {
    for (size_t direct = gathered; direct <= sizes; ++direct) {
      double sum = 0;
      for (size_t i = 0; i < sizes; ++i) {
        const SumTimes& times = measured[i];
        sum += std::log(i < gathered ? times.gather_us
                        : i < direct ? times.direct_us
                                     : times.two_step_us);
      }
      if (sum >= least) continue;
      least = sum;
      best = {.gathered_bytes = limit(gathered), .direct_bytes = limit(direct)};
    }
  }
  return best;
}

const char* NameOf(SumAlgorithm algorithm) {
  switch (algorithm) {
    case SumAlgorithm::kGather:
      return "gather";
    case SumAlgorithm::kDirect:
      return "direct";
    case SumAlgorithm::kTwoStep:
      return "two-step";
  }
  return "?";
}

}  // namespace lockstep
