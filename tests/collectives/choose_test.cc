#include "collectives/choose.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace lockstep {
namespace {

SumPlan Usually(const GroupTraits& traits, int ranks, size_t bytes) {
  return ChooseSum(traits, ranks, UsualSumLimits(ranks), bytes / sizeof(float));
}

GroupTraits Copying() {
  return {.name = "tcp",
          .slot_bytes = 8 << 20,
          .reads_in_place = false,
          .slots_in_parts = true,
          .any_order_is_fixed = true};
}

TEST(ChooseSum, ADecodedTokenIsOneStepInOnePiece) {
  for (const int ranks : {2, 3, 4, 8}) {
    const SumPlan plan = Usually(Copying(), ranks, 20'480);
    EXPECT_EQ(plan.algorithm, SumAlgorithm::kDirect) << ranks;
    EXPECT_EQ(plan.chunks, 1u) << ranks;
  }
}

TEST(ChooseSum, LongSumsOfMoreThanTwoRanksTakeTwoSteps) {
  EXPECT_EQ(Usually(Copying(), 2, 5 << 20).algorithm, SumAlgorithm::kDirect);
  EXPECT_EQ(Usually(Copying(), 3, 5 << 20).algorithm, SumAlgorithm::kTwoStep);
  EXPECT_EQ(Usually(Copying(), 4, 80 << 10).algorithm, SumAlgorithm::kTwoStep);
}

TEST(ChooseSum, AMeasuredLimitHoldsForAnyNumberOfRanks) {
  for (const int ranks : {2, 3, 8}) {
    const auto algorithm = [&](size_t gathered_bytes, size_t direct_bytes, size_t bytes) {
      return ChooseSum(Copying(), ranks, {gathered_bytes, direct_bytes}, bytes / 4).algorithm;
    };
    EXPECT_EQ(algorithm(0, 1 << 20, 1 << 20), SumAlgorithm::kDirect);
    EXPECT_EQ(algorithm(0, 1 << 20, (1 << 20) + 4), SumAlgorithm::kTwoStep);
    EXPECT_EQ(algorithm(0, 0, 4), SumAlgorithm::kTwoStep);
    EXPECT_EQ(algorithm(4096, 1 << 20, 4096), SumAlgorithm::kGather);
    EXPECT_EQ(algorithm(4096, 1 << 20, 4100), SumAlgorithm::kDirect);
    EXPECT_EQ(algorithm(4096, 0, 4096), SumAlgorithm::kGather);
    EXPECT_EQ(algorithm(4096, 0, 4100), SumAlgorithm::kTwoStep);
  }
}

TEST(ChooseSum, SumsWithoutRoomBehindPackedValuesTakeOneStep) {
  const auto algorithm = [](WireFormat wire, size_t count, int ranks) {
    return ChooseSum(Copying(), ranks, {0, 0}, count, wire).algorithm;
  };
  for (const WireFormat wire : {WireFormat::kBF16, WireFormat::kInt8}) {
    EXPECT_EQ(algorithm(wire, 31, 2), SumAlgorithm::kDirect);  // a rest is float32
    EXPECT_EQ(algorithm(wire, 32, 2), SumAlgorithm::kDirect);  // one rank has all
    EXPECT_EQ(algorithm(wire, 5120, 2), SumAlgorithm::kTwoStep);
    EXPECT_EQ(algorithm(wire, 5120, 8), SumAlgorithm::kTwoStep);
  }
  EXPECT_EQ(algorithm(WireFormat::kBF16, 3 * 32, 2), SumAlgorithm::kDirect);
  EXPECT_EQ(algorithm(WireFormat::kF32, 31, 2), SumAlgorithm::kTwoStep);
}

TEST(ChooseSum, CrowdedRanksLetRankZeroAddShortSums) {
  const SumLimits limits = UsualSumLimits(4, true);
  EXPECT_EQ(ChooseSum(Copying(), 4, limits, 5120).algorithm, SumAlgorithm::kGather);
  EXPECT_EQ(ChooseSum(Copying(), 4, limits, 1 << 20).algorithm, SumAlgorithm::kTwoStep);
  EXPECT_EQ(ChooseSum(Copying(), 2, UsualSumLimits(2, true), 5120).algorithm,
            SumAlgorithm::kDirect);
}

TEST(ChooseSum, SlotsThatTravelWholeTakeOneStepInOnePiece) {
  GroupTraits traits = Copying();
  traits.slots_in_parts = false;
  for (const SumLimits& limits : {SumLimits{0, 0}, SumLimits{SIZE_MAX, SIZE_MAX}}) {
    const SumPlan plan = ChooseSum(traits, 4, limits, 1 << 20);
    EXPECT_EQ(plan.algorithm, SumAlgorithm::kDirect);
    EXPECT_EQ(plan.chunks, 1u);
  }
}

void ExpectLimits(const std::vector<SumTimes>& measured, size_t gathered, size_t direct) {
  const SumLimits best = BestSumLimits(measured);
  EXPECT_EQ(best.gathered_bytes, gathered);
  EXPECT_EQ(best.direct_bytes, direct);
}

TEST(BestSumLimits, AreTheLastSizesAtWhichAWayIsFaster) {
  const SumTimes small{1024, 9, 5, 10}, middle{20'480, 99, 10, 12}, large{1 << 20, 999, 300, 200};
  ExpectLimits({small, middle, large}, 0, 20'480);
  ExpectLimits({small, middle}, 0, SIZE_MAX);
  ExpectLimits({large}, 0, 0);
  ExpectLimits({}, 0, 0);
  const SumTimes crowded{1024, 4, 9, 10};
  ExpectLimits({crowded, middle, large}, 1024, 20'480);
  ExpectLimits({crowded, large}, 1024, 1024);
  ExpectLimits({crowded}, SIZE_MAX, SIZE_MAX);
}

TEST(BestSumLimits, AreNotLedAstrayByOneOddSize) {
  // A scheduler tick at 4 KB, and a little luck at 5 MB.
  ExpectLimits({{1024, 9, 5, 10},
                {4096, 11, 12, 11},
                {20'480, 30, 10, 20},
                {1 << 20, 900, 300, 200},
                {5 << 20, 9000, 1000, 990},
                {20 << 20, 9999, 999, 1000}},
               0, 20'480);
}

TEST(ChooseSum, NeverCutsIntoMoreParts) {
  for (size_t bytes = 0; bytes < (size_t{1} << 31); bytes = bytes * 2 + 1) {
    for (const int ranks : {2, 3, 8}) {
      const SumPlan plan = Usually(Copying(), ranks, bytes);
      const size_t steps = plan.algorithm == SumAlgorithm::kTwoStep ? 2 : 1;
      EXPECT_GE(plan.chunks, 1u);
      EXPECT_LE(plan.chunks * steps, kMostParts) << bytes;
    }
  }
}

TEST(ChooseSum, OrdinaryMemoryPassesThroughACachedSlotWhereItIsReadInPlace) {
  GroupTraits traits = Copying();
  EXPECT_EQ(Usually(traits, 2, 5 << 20).longest_bytes, traits.slot_bytes);
  traits.reads_in_place = true;
  EXPECT_LT(Usually(traits, 2, 5 << 20).longest_bytes, size_t{1} << 20);
  traits.slot_bytes = 4096;
  EXPECT_EQ(Usually(traits, 2, 5 << 20).longest_bytes, 4096u);
}

}  // namespace
}  // namespace lockstep
