// Sums over ranks. Every element is added by one rank or by all of them, always as the left fold in
// rank order, so no choice made here shows in a bit of the result.
#include <algorithm>
#include <cstring>

#include "collectives/add_into.h"
#include "collectives/choose.h"
#include "collectives/group.h"

namespace lockstep {
namespace {

// A range of the values to add; it begins at a block of the wire, or is empty.
struct Range {
  size_t first = 0;
  size_t count = 0;
  std::span<float> Of(std::span<float> values) const { return values.subspan(first, count); }
  // Where a slot has it.
  SlotPart Packed(WireFormat wire) const {
    return {WireBytes(wire, first), WireBytes(wire, count)};
  }
};

// The `index`-th of `pieces` nearly equal pieces.
Range Piece(Range whole, size_t pieces, size_t index) {
  const size_t blocks = (whole.count + kWireBlock - 1) / kWireBlock;
  const size_t begin = std::min(blocks * index / pieces * kWireBlock, whole.count);
  const size_t end = std::min(blocks * (index + 1) / pieces * kWireBlock, whole.count);
  return {whole.first + begin, end - begin};
}

void UnpackAndAdd(std::span<float> sum, WireFormat wire, std::span<const std::byte> packed) {
  float values[16 * kWireBlock];
  while (!sum.empty()) {
    const size_t count = std::min(sum.size(), std::size(values));
    Unpack(wire, packed, {values, count});
    AddInto(sum.data(), values, count);
    packed = packed.subspan(WireBytes(wire, count));
    sum = sum.subspan(count);
  }
}

// sum = the fold of all slots in `range`, which is what every peer publishes next to this rank.
Status Fold(Group& group, WireFormat wire, Range range, std::span<float> sum) {
  const float* first = nullptr;
  for (int peer = 0; peer < group.size(); ++peer) {
    LOCKSTEP_ASSIGN_OR_RETURN(std::span<const std::byte> slot, group.Wait(peer));
    const SlotPart packed = range.Packed(wire);
    if (peer == group.rank()) slot = slot.subspan(packed.offset, packed.bytes);
    if (wire != WireFormat::kF32) {
      peer == 0 ? Unpack(wire, slot, sum) : UnpackAndAdd(sum, wire, slot);
      continue;
    }
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

// Rank 0 adds everything, and everyone reads its sum. No rank ends before all have begun: none has
// the sum before rank 0 has read all slots.
Status SumAtRankZero(Group& group, WireFormat wire, std::span<float> sum, size_t chunks) {
  const Range whole{0, sum.size()};
  const auto for_peers = [&](const auto& call) -> Status {
    for (int peer = 1; peer < group.size(); ++peer) LOCKSTEP_RETURN_IF_ERROR(call(peer));
    return OkStatus();
  };
  const auto sum_part = [](Range range) -> SlotPart {
    return {range.first * sizeof(float), range.count * sizeof(float)};
  };
  if (group.rank() != 0) {
    for (size_t chunk = 0; chunk < chunks; ++chunk) {
      LOCKSTEP_RETURN_IF_ERROR(group.ExpectPart(0, sum_part(Piece(whole, chunks, chunk))));
    }
    Pack(wire, group.slot());
    for (size_t chunk = 0; chunk < chunks; ++chunk) {
      const SlotPart part = Piece(whole, chunks, chunk).Packed(wire);
      LOCKSTEP_RETURN_IF_ERROR(group.PublishPart(0, part));
    }
    for (size_t chunk = 0; chunk < chunks; ++chunk) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::span<const std::byte> added, group.Wait(0));
      const std::span<float> into = Piece(whole, chunks, chunk).Of(sum);
      if (!into.empty()) std::memcpy(into.data(), added.data(), into.size_bytes());
    }
    return group.End();
  }
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const SlotPart part = Piece(whole, chunks, chunk).Packed(wire);
    LOCKSTEP_RETURN_IF_ERROR(for_peers([&](int peer) { return group.ExpectPart(peer, part); }));
  }
  Pack(wire, group.slot());
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const Range range = Piece(whole, chunks, chunk);
    const std::span<float> added = range.Of(sum);
    LOCKSTEP_RETURN_IF_ERROR(Fold(group, wire, range, added));
    // Nobody reads this rank's values, so the sum stands in their place.
    const SlotPart part = sum_part(range);
    if (!added.empty()) {
      std::memcpy(group.slot().subspan(part.offset).data(), added.data(), part.bytes);
    }
    LOCKSTEP_RETURN_IF_ERROR(for_peers([&](int peer) { return group.PublishPart(peer, part); }));
  }
  return group.End();
}

// Every rank adds everything.
Status SumDirectly(Group& group, WireFormat wire, std::span<float> sum, size_t chunks) {
  const Range whole{0, sum.size()};
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const SlotPart part = Piece(whole, chunks, chunk).Packed(wire);
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer != group.rank()) LOCKSTEP_RETURN_IF_ERROR(group.ExpectPart(peer, part));
    }
  }
  Pack(wire, group.slot());
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const SlotPart part = Piece(whole, chunks, chunk).Packed(wire);
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer != group.rank()) LOCKSTEP_RETURN_IF_ERROR(group.PublishPart(peer, part));
    }
  }
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const Range range = Piece(whole, chunks, chunk);
    LOCKSTEP_RETURN_IF_ERROR(Fold(group, wire, range, range.Of(sum)));
  }
  return group.End();
}

// Every rank adds its own piece of all slots (reduce-scatter), puts the sum into its slot, and
// reads the pieces of the others (all-gather). A chunk goes on to the second step while others are
// still in the first.
Status SumInTwoSteps(Group& group, WireFormat wire, std::span<float> sum, size_t chunks) {
  const auto piece_of = [&](int rank) {
    return Piece({0, sum.size()}, static_cast<size_t>(group.size()), static_cast<size_t>(rank));
  };
  const auto chunk_of = [&](int rank, size_t chunk) {
    return Piece(piece_of(rank), chunks, chunk);
  };
  // Sums are float32 on every wire, or another algorithm would have other bits. They stand where
  // the values were, which nobody else reads, or behind the packed ones.
  const size_t sums_begin = SumsBegin(wire, sum.size());
  const auto sum_part = [&](int owner, size_t chunk) -> SlotPart {
    const Range range = chunk_of(owner, chunk);
    if (wire == WireFormat::kF32) return range.Packed(wire);
    const size_t before = (range.first - piece_of(owner).first) * sizeof(float);
    return {sums_begin + before, range.count * sizeof(float)};
  };
  const int me = group.rank();
  for (int peer = 0; peer < group.size(); ++peer) {
    if (peer == me) continue;
    for (size_t chunk = 0; chunk < chunks; ++chunk) {
      LOCKSTEP_RETURN_IF_ERROR(group.ExpectPart(peer, chunk_of(me, chunk).Packed(wire)));
    }
    for (size_t chunk = 0; chunk < chunks; ++chunk) {
      LOCKSTEP_RETURN_IF_ERROR(group.ExpectPart(peer, sum_part(peer, chunk)));
    }
  }
  Pack(wire, group.slot());
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == me) continue;
      LOCKSTEP_RETURN_IF_ERROR(group.PublishPart(peer, chunk_of(peer, chunk).Packed(wire)));
    }
  }
  for (size_t chunk = 0; chunk < chunks; ++chunk) {
    const Range range = chunk_of(me, chunk);
    const std::span<float> added = range.Of(sum);
    LOCKSTEP_RETURN_IF_ERROR(Fold(group, wire, range, added));
    const SlotPart part = sum_part(me, chunk);
    if (!added.empty()) {
      std::memcpy(group.slot().subspan(part.offset).data(), added.data(), added.size_bytes());
    }
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == me) continue;
      LOCKSTEP_RETURN_IF_ERROR(group.PublishPart(peer, part));
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

Status SumSlots(Group& group, std::span<float> sum, WireFormat wire) {
  if (group.sum_order() == SumOrder::kAny && wire == WireFormat::kF32) {
    // Nobody publishes, so nobody reads a slot; no rank has the sum before all have begun it, so
    // that the slots of the exchange before are read by then, as if all had published.
    if (!sum.empty()) std::memcpy(sum.data(), group.slot().data(), sum.size_bytes());
    LOCKSTEP_RETURN_IF_ERROR(group.End());
    return group.SumInAnyOrder(sum);
  }
  const SumPlan plan = ChooseSum(group, sum.size(), wire);
  switch (plan.algorithm) {
    case SumAlgorithm::kGather:
      return SumAtRankZero(group, wire, sum, plan.chunks);
    case SumAlgorithm::kDirect:
      return SumDirectly(group, wire, sum, plan.chunks);
    case SumAlgorithm::kTwoStep:
      return SumInTwoSteps(group, wire, sum, plan.chunks);
  }
  return InternalError("sums have no algorithm %d", static_cast<int>(plan.algorithm));
}

Status AllReduceSum(Group& group, std::span<float> data, WireFormat wire) {
  if (group.size() == 1) return OkStatus();
  const bool any_order = group.sum_order() == SumOrder::kAny && wire == WireFormat::kF32;
  const size_t longest_bytes =
      any_order ? group.traits().slot_bytes : ChooseSum(group, data.size(), wire).longest_bytes;
  // Whole blocks, so that where exchanges are cut does not show in what is rounded.
  size_t longest = longest_bytes / sizeof(float);
  if (longest > kWireBlock) longest -= longest % kWireBlock;
  do {
    const std::span<float> piece = data.first(std::min(data.size(), longest));
    LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot, group.Begin(piece.size_bytes()));
    if (!piece.empty()) std::memcpy(slot.data(), piece.data(), piece.size_bytes());
    LOCKSTEP_RETURN_IF_ERROR(SumSlots(group, piece, wire));
    data = data.subspan(piece.size());
  } while (!data.empty());
  return OkStatus();
}

}  // namespace lockstep
