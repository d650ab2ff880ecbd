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
// second wait costs about as much as 32 KB more to move (measured on 4 ranks, 2026-11-21).
size_t UsualDirectBytes(int ranks) { return ranks > 2 ? size_t{32} << 10 : SIZE_MAX; }

SumPlan ChooseSum(const GroupTraits& traits, int ranks, size_t longest_direct_bytes, size_t count,
                  WireFormat wire) {
  const size_t bytes = WireBytes(wire, count);
  SumPlan plan;
  plan.longest_bytes = traits.slot_bytes;
  if (traits.reads_in_place) {
    plan.longest_bytes = std::min(plan.longest_bytes, kLongestInPlaceBytes);
  }
  if (!traits.slots_in_parts) return plan;
  if (bytes > longest_direct_bytes && HasRoomForSums(wire, static_cast<size_t>(ranks), count)) {
    plan.algorithm = SumAlgorithm::kTwoStep;
    // A rank publishes each chunk of its part twice: what it has, and the sum.
    plan.chunks = Chunks(bytes / static_cast<size_t>(ranks), kMostParts / 2);
  } else {
    plan.chunks = Chunks(bytes, kMostParts);
  }
  return plan;
}

size_t BestDirectBytes(std::span<const SumTimes> measured) {
  // What is lost if all sizes take two steps; each size in turn moves to one step.
  double loss = 0, least = 0;
  size_t best = 0;
  for (const SumTimes& times : measured) {
    loss += std::log(times.direct_us / times.two_step_us);
    if (loss > least) continue;
    least = loss;
    best = &times == &measured.back() ? SIZE_MAX : times.bytes;
  }
  return best;
}

const char* NameOf(SumAlgorithm algorithm) {
  switch (algorithm) {
    case SumAlgorithm::kDirect:
      return "direct";
    case SumAlgorithm::kTwoStep:
      return "two-step";
  }
  return "?";
}

}  // namespace lockstep
