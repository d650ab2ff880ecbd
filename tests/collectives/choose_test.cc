#include "collectives/choose.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace lockstep {
namespace {

SumPlan Usually(const GroupTraits& traits, int ranks, size_t bytes) {
  return ChooseSum(traits, ranks, UsualDirectBytes(ranks), bytes / sizeof(float));
}

GroupTraits Copying() {
  return {.name = "tcp",
          .slot_bytes = 8 << 20,
          .sums_in_rank_order = true,
          .reads_in_place = false,
          .slots_in_parts = true};
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
    EXPECT_EQ(ChooseSum(Copying(), ranks, 1 << 20, (1 << 20) / 4).algorithm, SumAlgorithm::kDirect);
    EXPECT_EQ(ChooseSum(Copying(), ranks, 1 << 20, (1 << 20) / 4 + 1).algorithm,
              SumAlgorithm::kTwoStep);
    EXPECT_EQ(ChooseSum(Copying(), ranks, 0, 1).algorithm, SumAlgorithm::kTwoStep);
  }
}

TEST(ChooseSum, SumsWithoutRoomBehindPackedValuesTakeOneStep) {
  const auto algorithm = [](WireFormat wire, size_t count, int ranks) {
    return ChooseSum(Copying(), ranks, 0, count, wire).algorithm;
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

TEST(BestDirectBytes, IsTheLastSizeAtWhichOneStepIsFaster) {
  const SumTimes small{1024, 5, 10}, middle{20'480, 10, 12}, large{1 << 20, 300, 200};
  EXPECT_EQ(BestDirectBytes(std::vector{small, middle, large}), 20'480u);
  EXPECT_EQ(BestDirectBytes(std::vector{small, middle}), SIZE_MAX);
  EXPECT_EQ(BestDirectBytes(std::vector{large}), 0u);
  EXPECT_EQ(BestDirectBytes({}), 0u);
}

TEST(BestDirectBytes, IsNotLedAstrayByOneOddSize) {
  // A scheduler tick at 4 KB, and a little luck at 5 MB.
  const std::vector<SumTimes> measured = {{1024, 5, 10},        {4096, 12, 11},
                                          {20'480, 10, 20},     {1 << 20, 300, 200},
                                          {5 << 20, 1000, 990}, {20 << 20, 999, 1000}};
  EXPECT_EQ(BestDirectBytes(measured), 20'480u);
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
