// Sums over ranks. Every element is added by one rank or by all of them, always as the left fold in
// rank order, so no choice made here shows in a bit of the result.
#include <algorithm>
#include <cstring>

#include "collectives/choose.h"
#include "collectives/group.h"

namespace lockstep {
namespace {

// Parts of slots begin on a cache line.
constexpr size_t kLineFloats = 16;

// A range of a slot's floats.
struct Range {
  size_t first = 0;
  size_t count = 0;
  SlotPart part() const { return {first * sizeof(float), count * sizeof(float)}; }
  std::span<float> Of(std::span<float> values) const { return values.subspan(first, count); }
};

// The `index`-th of `pieces` nearly equal pieces.
Range Piece(Range whole, size_t pieces, size_t index) {
  const size_t lines = (whole.count + kLineFloats - 1) / kLineFloats;
  const size_t begin = std::min(lines * index / pieces * kLineFloats, whole.count);
  const size_t end = std::min(lines * (index + 1) / pieces * kLineFloats, whole.count);
  return {whole.first + begin, end - begin};
}

// Two fixed loops of plain additions: the compiler vectorizes them, and every element is added in
// rank order whatever the vector width, so the bits are the same everywhere.
void AddInto(float* __restrict sum, const float* __restrict a, const float* __restrict b,
             size_t count) {
  for (size_t i = 0; i < count; ++i) sum[i] = a[i] + b[i];
}
void AddInto(float* __restrict sum, const float* __restrict a, size_t count) {
  for (size_t i = 0; i < count; ++i) sum[i] += a[i];
}

// sum = the fold of all slots in `range`, which is what every peer publishes next to this rank.
Status Fold(Group& group, Range range, std::span<float> sum) {
  const float* first = nullptr;
  for (int peer = 0; peer < group.size(); ++peer) {
    LOCKSTEP_ASSIGN_OR_RETURN(std::span<const std::byte> slot, group.Wait(peer));
    if (peer == group.rank()) slot = slot.subspan(range.part().offset, range.part().bytes);
    const float* values = reinterpret_cast<const float*>(slot.data());
    if (peer == 0) {
      first = values;
    } else if (peer == 1) {
      AddInto(sum.data(), first, values, sum.size());
    } else {
      AddInto(sum.data(), values, sum.size());
    }
  }
  return OkStatus();
}

// Every rank adds everything.
Status SumDirectly(Group& group, std::span<float> sum, size_t chunks) {
  const Range whole{0, sum.size()};
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const SlotPart part = Piece(whole, chunks, chunk).part();
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == group.rank()) continue;
      LOCKSTEP_RETURN_IF_ERROR(group.ExpectPart(peer, part));
      LOCKSTEP_RETURN_IF_ERROR(group.PublishPart(peer, part));
    }
  }
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const Range range = Piece(whole, chunks, chunk);
    LOCKSTEP_RETURN_IF_ERROR(Fold(group, range, range.Of(sum)));
  }
  return group.End();
}

// Every rank adds its own piece of all slots (reduce-scatter), puts the sum where its values were,
// and reads the pieces of the others (all-gather). A chunk goes on to the second step while others
// are still in the first.
Status SumInTwoSteps(Group& group, std::span<float> sum, size_t chunks) {
  const auto ranks = static_cast<size_t>(group.size());
  const auto chunk_of = [&](int rank, size_t chunk) {
    return Piece(Piece({0, sum.size()}, ranks, static_cast<size_t>(rank)), chunks, chunk);
  };
  const int me = group.rank();
  for (int peer = 0; peer < group.size(); ++peer) {
    if (peer == me) continue;
    for (const int owner : {me, peer}) {
      for (size_t chunk = 0; chunk < chunks; ++chunk) {
        LOCKSTEP_RETURN_IF_ERROR(group.ExpectPart(peer, chunk_of(owner, chunk).part()));
      }
    }
  }
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == me) continue;
      LOCKSTEP_RETURN_IF_ERROR(group.PublishPart(peer, chunk_of(peer, chunk).part()));
    }
  }
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const Range range = chunk_of(me, chunk);
    const std::span<float> added = range.Of(sum);
    LOCKSTEP_RETURN_IF_ERROR(Fold(group, range, added));
    if (!added.empty()) {
      std::memcpy(group.slot().data() + range.part().offset, added.data(), added.size_bytes());
    }
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == me) continue;
      LOCKSTEP_RETURN_IF_ERROR(group.PublishPart(peer, range.part()));
    }
  }
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == me) continue;
      LOCKSTEP_ASSIGN_OR_RETURN(const std::span<const std::byte> added, group.Wait(peer));
      if (added.empty()) continue;
      std::memcpy(chunk_of(peer, chunk).Of(sum).data(), added.data(), added.size());
    }
  }
  return group.End();
}

}  // namespace

Status SumSlots(Group& group, std::span<float> sum) {
  const SumPlan plan = ChooseSum(group.traits(), group.size(), sum.size_bytes());
  switch (plan.algorithm) {
    case SumAlgorithm::kDirect:
      return SumDirectly(group, sum, plan.chunks);
    case SumAlgorithm::kTwoStep:
      return SumInTwoSteps(group, sum, plan.chunks);
  }
  return InternalError("sums have no algorithm %d", static_cast<int>(plan.algorithm));
}

Status AllReduceSum(Group& group, std::span<float> data) {
  if (group.size() == 1) return OkStatus();
  const size_t longest_bytes =
      ChooseSum(group.traits(), group.size(), data.size_bytes()).longest_bytes;
  do {
    const std::span<float> piece = data.first(std::min(data.size(), longest_bytes / sizeof(float)));
    LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot, group.Begin(piece.size_bytes()));
    if (!piece.empty()) std::memcpy(slot.data(), piece.data(), piece.size_bytes());
    LOCKSTEP_RETURN_IF_ERROR(SumSlots(group, piece));
    data = data.subspan(piece.size());
  } while (!data.empty());
  return OkStatus();
}

}  // namespace lockstep
