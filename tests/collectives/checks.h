// What every group must do, as checks that return an error instead of failing: they run in threads,
// in forked processes and under mpirun.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/split_mix.h"

namespace lockstep {

// What rank `rank` contributes: values of very different sizes, so that the order of a sum shows in
// its bits.
inline std::vector<float> Contribution(int rank, size_t count, uint32_t seed) {
  const uint64_t stream = MixBits(uint64_t{seed} << 32 | static_cast<uint32_t>(rank));
  std::vector<float> values(count);
  for (size_t i = 0; i < count; ++i) {
    const uint64_t bits = MixBits(stream + kGoldenGamma * i);
    const int32_t mantissa = static_cast<int32_t>(bits & 0x1ffffff) - 0x1000000;
    const uint32_t exponent = 127 - 36 + static_cast<uint32_t>(bits >> 32) % 24;
    values[i] = static_cast<float>(mantissa) * std::bit_cast<float>(exponent << 23);
  }
  return values;
}

// What a sum of all ranks' contributions has to be: the left fold in rank order of what each of
// them is rounded to as a whole (wire_format_test.cc says to what).
inline std::vector<float> ExpectedSum(int ranks, size_t count, uint32_t seed, WireFormat wire) {
  std::vector<float> sum(count);
  for (int rank = 0; rank < ranks; ++rank) {
    std::vector<float> values = Contribution(rank, count, seed), rounded(count);
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span(values));
    Pack(wire, bytes);
    Unpack(wire, bytes.first(WireBytes(wire, count)), rounded);
    for (size_t i = 0; i < count; ++i) sum[i] = rank == 0 ? rounded[i] : sum[i] + rounded[i];
  }
  return sum;
}

inline Status CheckAllReduce(Group& group, size_t count, uint32_t seed,
                             WireFormat wire = WireFormat::kF32) {
  std::vector<float> data = Contribution(group.rank(), count, seed);
  LOCKSTEP_RETURN_IF_ERROR(AllReduceSum(group, data, wire));
  const std::vector<float> expected = ExpectedSum(group.size(), count, seed, wire);
  if (count > 0 && group.size() > 1 &&
      std::memcmp(data.data(), expected.data(), count * sizeof(float)) != 0) {
    return InternalError("rank %d: the sum of %d values (seed %d) differs from the left fold",
                         group.rank(), count, seed);
  }
  return OkStatus();
}

inline std::vector<std::byte> Pattern(int rank, size_t bytes, uint32_t seed) {
  const uint64_t stream = MixBits(~(uint64_t{seed} << 32 | static_cast<uint32_t>(rank)));
  std::vector<std::byte> data(bytes);
  for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
    const uint64_t bits = MixBits(stream + kGoldenGamma * i);
    std::memcpy(&data[i], &bits, std::min(sizeof(bits), bytes - i));
  }
  return data;
}

inline Status CheckAllGather(Group& group, size_t bytes, uint32_t seed) {
  const std::vector<std::byte> mine = Pattern(group.rank(), bytes, seed);
  std::vector<std::byte> all(bytes * static_cast<size_t>(group.size()));
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group, mine, all));
  for (int rank = 0; rank < group.size(); ++rank) {
    const std::vector<std::byte> expected = Pattern(rank, bytes, seed);
    if (!std::equal(expected.begin(), expected.end(),
                    all.begin() + static_cast<ptrdiff_t>(bytes) * rank)) {
      return InternalError("rank %d: gathered %d bytes of rank %d wrongly", group.rank(), bytes,
                           rank);
    }
  }
  return OkStatus();
}

inline Status CheckBroadcast(Group& group, size_t bytes, int root, Patience patience) {
  const std::vector<std::byte> expected = Pattern(root, bytes, 5);
  std::vector<std::byte> data = group.rank() == root ? expected : std::vector<std::byte>(bytes);
  LOCKSTEP_RETURN_IF_ERROR(Broadcast(group, data, root, patience));
  if (data != expected)
    return InternalError("rank %d: broadcast of %d bytes is wrong", group.rank(), bytes);
  std::vector<std::byte> message = group.rank() == root ? expected : std::vector<std::byte>(3);
  LOCKSTEP_RETURN_IF_ERROR(BroadcastMessage(group, &message, root, patience));
  if (message != expected)
    return InternalError("rank %d: message of %d bytes is wrong", group.rank(), bytes);
  return OkStatus();
}

// What rank `from` sends to rank `to`: another size for every pair, some of them empty.
inline size_t PairBytes(int from, int to, size_t unit) {
  return static_cast<size_t>((from * 7 + to * 3) % 5) * unit;
}

inline Status CheckAllToAll(Group& group, size_t unit) {
  const int me = group.rank();
  std::vector<std::vector<std::byte>> out, in;
  std::vector<std::span<const std::byte>> sends;
  std::vector<std::span<std::byte>> receives;
  for (int peer = 0; peer < group.size(); ++peer) {
    out.push_back(Pattern(me * 100 + peer, PairBytes(me, peer, unit), 9));
    in.emplace_back(PairBytes(peer, me, unit));
  }
  for (int peer = 0; peer < group.size(); ++peer) {
    sends.emplace_back(out[peer]);
    receives.emplace_back(in[peer]);
  }
  LOCKSTEP_RETURN_IF_ERROR(AllToAll(group, sends, receives));
  for (int peer = 0; peer < group.size(); ++peer) {
    if (in[peer] != Pattern(peer * 100 + me, PairBytes(peer, me, unit), 9)) {
      return InternalError("rank %d: all-to-all part of rank %d is wrong", me, peer);
    }
  }
  return OkStatus();
}

// The primitive itself: slots are aligned, and readable in any order.
inline Status CheckExchange(Group& group, size_t bytes) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot, group.Begin(bytes));
  if (slot.size() != bytes || reinterpret_cast<uintptr_t>(slot.data()) % 64 != 0) {
    return InternalError("rank %d: the slot is not as asked for", group.rank());
  }
  const std::vector<std::byte> mine = Pattern(group.rank(), bytes, 21);
  std::copy(mine.begin(), mine.end(), slot.begin());
  LOCKSTEP_RETURN_IF_ERROR(group.Publish());
  for (int peer = group.size() - 1; peer >= 0; --peer) {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::span<const std::byte> part, group.Wait(peer));
    const std::vector<std::byte> expected = Pattern(peer, bytes, 21);
    if (!std::equal(part.begin(), part.end(), expected.begin(), expected.end())) {
      return InternalError("rank %d: the slot of rank %d is wrong", group.rank(), peer);
    }
  }
  return group.End();
}

// What rank `from` publishes to rank `to` in parts: another range for every pair, some empty.
inline std::vector<SlotPart> PartsBetween(int from, int to, size_t bytes) {
  const size_t piece = bytes / 7;
  std::vector<SlotPart> parts;
  for (int i = 0; i <= (from + 2 * to) % 5; ++i) {
    parts.push_back({static_cast<size_t>(6 - i) * piece, i == 1 ? 0 : piece});
  }
  return parts;
}

// Slots in parts: every rank sees what was published to it and in that order, exchange after
// exchange, although nobody waits for more than that.
inline Status CheckParts(Group& group, size_t bytes, int exchanges) {
  if (!group.traits().slots_in_parts) return OkStatus();
  const int me = group.rank();
  for (int round = 0; round < exchanges; ++round) {
    const uint32_t seed = 300 + static_cast<uint32_t>(round);
    LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot, group.Begin(bytes));
    const std::vector<std::byte> mine = Pattern(me, bytes, seed);
    std::copy(mine.begin(), mine.end(), slot.begin());
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == me) continue;
      for (const SlotPart part : PartsBetween(peer, me, bytes)) {
        LOCKSTEP_RETURN_IF_ERROR(group.ExpectPart(peer, part));
      }
      for (const SlotPart part : PartsBetween(me, peer, bytes)) {
        LOCKSTEP_RETURN_IF_ERROR(group.PublishPart(peer, part));
      }
    }
    for (int peer = 0; peer < group.size(); ++peer) {
      if (peer == me) continue;
      const std::vector<std::byte> expected = Pattern(peer, bytes, seed);
      std::vector<SlotPart> parts = PartsBetween(peer, me, bytes);
      // The last one is left to End.
      if (parts.size() > 1) parts.pop_back();
      for (const SlotPart part : parts) {
        LOCKSTEP_ASSIGN_OR_RETURN(const std::span<const std::byte> got, group.Wait(peer));
        if (got.size() != part.bytes ||
            !std::equal(got.begin(), got.end(),
                        expected.begin() + static_cast<ptrdiff_t>(part.offset))) {
          return InternalError("rank %d: %d bytes at %d of rank %d's slot are wrong", me,
                               part.bytes, part.offset, peer);
        }
      }
    }
    LOCKSTEP_RETURN_IF_ERROR(group.End());
  }
  return OkStatus();
}

// Messages from and to any address, of any length.
inline Status CheckUnaligned(Group& group, size_t shift, size_t bytes) {
  const std::vector<std::byte> mine = Pattern(group.rank(), shift + bytes, 31);
  std::vector<std::byte> all(shift + bytes * static_cast<size_t>(group.size()));
  const std::span<std::byte> gathered = std::span(all).subspan(shift);
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group, std::span(mine).subspan(shift), gathered));
  for (int rank = 0; rank < group.size(); ++rank) {
    const std::vector<std::byte> expected = Pattern(rank, shift + bytes, 31);
    if (!std::equal(expected.begin() + static_cast<ptrdiff_t>(shift), expected.end(),
                    gathered.begin() + static_cast<ptrdiff_t>(bytes) * rank)) {
      return InternalError("rank %d: gathered %d bytes from address %d wrongly", group.rank(),
                           bytes, shift);
    }
  }
  if (group.rank() == 0) std::copy(mine.begin(), mine.end(), all.begin());
  LOCKSTEP_RETURN_IF_ERROR(Broadcast(group, gathered.first(bytes), 0));
  const std::vector<std::byte> expected = Pattern(0, shift + bytes, 31);
  if (!std::equal(expected.begin() + static_cast<ptrdiff_t>(shift), expected.end(),
                  gathered.begin())) {
    return InternalError("rank %d: broadcast of %d bytes to address %d is wrong", group.rank(),
                         bytes, shift);
  }
  return OkStatus();
}

// Sums of slots in place: the same bits as of ordinary memory, at sizes around every choice of
// choose.h, exchange after exchange.
inline Status CheckSumSlots(Group& group, size_t count, uint32_t seed,
                            WireFormat wire = WireFormat::kF32) {
  if (group.size() == 1) return OkStatus();
  const std::vector<float> mine = Contribution(group.rank(), count, seed);
  LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot, group.Begin(count * sizeof(float)));
  if (count > 0) std::memcpy(slot.data(), mine.data(), slot.size());
  std::vector<float> sum(count);
  LOCKSTEP_RETURN_IF_ERROR(SumSlots(group, sum, wire));
  const std::vector<float> expected = ExpectedSum(group.size(), count, seed, wire);
  if (count > 0 && std::memcmp(sum.data(), expected.data(), count * sizeof(float)) != 0) {
    return InternalError("rank %d: the sum of slots of %d values (seed %d) is not the left fold",
                         group.rank(), count, seed);
  }
  return OkStatus();
}

// Sums in any order: near the exact one, and the same bits on all ranks. Between exchanges whose
// slots others still read when a rank that is ahead begins the next. As if every rank had a machine
// of its own, or all had one.
inline Status CheckAnyOrder(Group& group, size_t count, uint32_t seed, bool apart,
                            size_t direct_bytes = SIZE_MAX) {
  std::vector<float> sum = Contribution(group.rank(), count, seed);
  std::vector<int> machines(static_cast<size_t>(group.size()));
  if (apart) std::iota(machines.begin(), machines.end(), 0);
  const SumLimits usual = group.sum_limits();
  group.set_machines(machines);
  group.set_sum_limits({.direct_bytes = direct_bytes});
  group.set_sum_order(SumOrder::kAny);
  const Status summed = AllReduceSum(group, sum);
  group.set_sum_order(SumOrder::kRank);
  group.set_sum_limits(usual);
  LOCKSTEP_RETURN_IF_ERROR(summed);
  std::vector<double> exact(count), magnitude(count);
  for (int rank = 0; rank < group.size(); ++rank) {
    const std::vector<float> values = Contribution(rank, count, seed);
    for (size_t i = 0; i < count; ++i) {
      exact[i] += values[i];
      magnitude[i] += std::abs(values[i]);
    }
  }
  for (size_t i = 0; i < count; ++i) {
    if (std::abs(sum[i] - exact[i]) <= magnitude[i] * group.size() * 0x1p-24) continue;
    return InternalError("rank %d: in any order value %d of %d (seed %d) is %g, not %g",
                         group.rank(), i, count, seed, sum[i], exact[i]);
  }
  std::vector<std::byte> all(count * sizeof(float) * static_cast<size_t>(group.size()));
  const auto mine = std::as_bytes(std::span(sum));
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group, mine, all));
  for (size_t begin = 0; begin < all.size(); begin += mine.size()) {
    if (std::equal(mine.begin(), mine.end(), all.begin() + static_cast<ptrdiff_t>(begin))) continue;
    return InternalError("rank %d: in any order %d values (seed %d) have other bits than elsewhere",
                         group.rank(), count, seed);
  }
  return OkStatus();
}

inline Status CheckEverything(Group& group) {
  const size_t slot = group.traits().slot_bytes;
  const size_t slot_floats = slot / sizeof(float);
  uint32_t seed = 1;
  for (const size_t count : {size_t{0}, size_t{1}, size_t{7}, size_t{5120}, slot_floats - 1,
                             slot_floats, slot_floats + 1, 3 * slot_floats + 5}) {
    LOCKSTEP_RETURN_IF_ERROR(CheckAllReduce(group, count, seed++));
  }
  for (const size_t count : {size_t{0}, size_t{3}, size_t{8191}, size_t{8193}, slot_floats}) {
    LOCKSTEP_RETURN_IF_ERROR(CheckSumSlots(group, std::min(count, slot_floats), seed++));
  }
  // A rest behind the blocks, and exchanges that a sum is cut into.
  for (const WireFormat wire : {WireFormat::kBF16, WireFormat::kInt8}) {
    if (group.size() > 4) break;  // to last no longer than it must under sanitizers
    for (const size_t count : {size_t{31}, size_t{5123}}) {
      LOCKSTEP_RETURN_IF_ERROR(CheckSumSlots(group, std::min(count, slot_floats), seed++, wire));
    }
    LOCKSTEP_RETURN_IF_ERROR(CheckAllReduce(group, 2 * slot_floats + 77, seed++, wire));
  }
  // In two steps whatever the size; some are so short that they have no room for it. And by rank 0.
  const SumLimits usual = group.sum_limits();
  for (const SumLimits& limits : {SumLimits{0, 0}, SumLimits{SIZE_MAX, SIZE_MAX}}) {
    group.set_sum_limits(limits);
    for (const WireFormat wire : {WireFormat::kF32, WireFormat::kBF16, WireFormat::kInt8}) {
      for (const size_t count :
           {size_t{0}, size_t{1}, size_t{31}, size_t{64}, size_t{96}, size_t{5123}}) {
        LOCKSTEP_RETURN_IF_ERROR(CheckSumSlots(group, std::min(count, slot_floats), seed++, wire));
      }
    }
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckAllReduce(group, 3 * slot_floats + 5, seed++));
  group.set_sum_limits(usual);
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{333}, slot, slot + 1, 2 * slot + 17}) {
    LOCKSTEP_RETURN_IF_ERROR(CheckAllGather(group, bytes, seed++));
    for (int root = 0; root < group.size(); ++root) {
      LOCKSTEP_RETURN_IF_ERROR(CheckBroadcast(group, bytes, root, Patience::kStep));
      LOCKSTEP_RETURN_IF_ERROR(CheckBroadcast(group, bytes, root, Patience::kIdle));
    }
  }
  for (const size_t unit : {size_t{0}, size_t{1}, size_t{1000}, size_t{700'001}}) {
    LOCKSTEP_RETURN_IF_ERROR(CheckAllToAll(group, unit));
  }
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{64}, slot}) {
    LOCKSTEP_RETURN_IF_ERROR(CheckExchange(group, bytes));
  }
  for (const size_t bytes : {size_t{0}, size_t{71}, slot}) {
    LOCKSTEP_RETURN_IF_ERROR(CheckParts(group, bytes, 20));
  }
  for (const size_t shift : {1, 3, 7}) {
    LOCKSTEP_RETURN_IF_ERROR(CheckUnaligned(group, shift, 4099));
    LOCKSTEP_RETURN_IF_ERROR(CheckUnaligned(group, shift, slot + 13));
  }
  for (const size_t count : {size_t{0}, size_t{5}, slot_floats + 9}) {
    LOCKSTEP_RETURN_IF_ERROR(CheckAnyOrder(group, count, seed++, count == 5));
    LOCKSTEP_RETURN_IF_ERROR(CheckAnyOrder(group, count, seed++, true, 0));
  }
  for (int i = 0; i < 3; ++i) LOCKSTEP_RETURN_IF_ERROR(Barrier(group));
  return OkStatus();
}

// `count` exchanges of changing sizes, each verified.
inline Status CheckManyExchanges(Group& group, int count) {
  const SumLimits usual = group.sum_limits();
  const SumLimits each[] = {usual, {0, 0}, {SIZE_MAX, SIZE_MAX}, {0, SIZE_MAX}};
  for (int i = 0; i < count; ++i) {
    group.set_sum_limits(each[i % 7 % 4]);
    LOCKSTEP_RETURN_IF_ERROR(
        CheckAllReduce(group, static_cast<size_t>(i * 37 % 613), static_cast<uint32_t>(i)));
    if (i % 32 == 0) {
      LOCKSTEP_RETURN_IF_ERROR(CheckAnyOrder(group, static_cast<size_t>(i % 613), 7, i % 64 == 0,
                                             i % 96 == 0 ? 0 : 400));
    }
    if (i % 16 == 0)
      LOCKSTEP_RETURN_IF_ERROR(CheckBroadcast(group, static_cast<size_t>(i), 0, Patience::kIdle));
  }
  return OkStatus();
}

}  // namespace lockstep
