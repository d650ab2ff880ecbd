#include "collectives/choose.h"

#include <algorithm>

namespace lockstep {
namespace {

// With two ranks both algorithms move the same bytes, and one step waits once. With more, the
// second wait costs about as much as 32 KB more to move (measured on 4 ranks, 2026-11-21).
constexpr size_t kLongestDirectBytes = 32 << 10;
// A chunk should still be in the cache of the core that received or filled it when it is added.
constexpr size_t kChunkBytes = 128 << 10;
// Where slots are read in place: ordinary memory is copied into the slot, which should stay in the
// cache until the peer has read it.
constexpr size_t kLongestInPlaceBytes = 256 << 10;

size_t Chunks(size_t bytes, size_t most) {
  return std::clamp<size_t>((bytes + kChunkBytes - 1) / kChunkBytes, 1, most);
}

}  // namespace

SumPlan ChooseSum(const GroupTraits& traits, int ranks, size_t bytes) {
  SumPlan plan;
  plan.longest_bytes = traits.slot_bytes;
  if (traits.reads_in_place) {
    plan.longest_bytes = std::min(plan.longest_bytes, kLongestInPlaceBytes);
  }
  if (ranks > 2 && bytes > kLongestDirectBytes) {
    plan.algorithm = SumAlgorithm::kTwoStep;
    // A rank publishes each chunk of its part twice: what it has, and the sum.
    plan.chunks = Chunks(bytes / static_cast<size_t>(ranks), kMostParts / 2);
  } else {
    plan.chunks = Chunks(bytes, kMostParts);
  }
  return plan;
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
