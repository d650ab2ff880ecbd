#include "collectives/choose.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

GroupTraits Copying() {
  return {
      .name = "tcp", .slot_bytes = 8 << 20, .sums_in_rank_order = true, .reads_in_place = false};
}

TEST(ChooseSum, ADecodedTokenIsOneStepInOnePiece) {
  for (const int ranks : {2, 3, 4, 8}) {
    const SumPlan plan = ChooseSum(Copying(), ranks, 20'480);
    EXPECT_EQ(plan.algorithm, SumAlgorithm::kDirect) << ranks;
    EXPECT_EQ(plan.chunks, 1u) << ranks;
  }
}

TEST(ChooseSum, LongSumsOfMoreThanTwoRanksTakeTwoSteps) {
  EXPECT_EQ(ChooseSum(Copying(), 2, 5 << 20).algorithm, SumAlgorithm::kDirect);
  EXPECT_EQ(ChooseSum(Copying(), 3, 5 << 20).algorithm, SumAlgorithm::kTwoStep);
  EXPECT_EQ(ChooseSum(Copying(), 4, 80 << 10).algorithm, SumAlgorithm::kTwoStep);
}

TEST(ChooseSum, NeverCutsIntoMoreParts) {
  for (size_t bytes = 0; bytes < (size_t{1} << 31); bytes = bytes * 2 + 1) {
    for (const int ranks : {2, 3, 8}) {
      const SumPlan plan = ChooseSum(Copying(), ranks, bytes);
      const size_t steps = plan.algorithm == SumAlgorithm::kTwoStep ? 2 : 1;
      EXPECT_GE(plan.chunks, 1u);
      EXPECT_LE(plan.chunks * steps, kMostParts) << bytes;
    }
  }
}

TEST(ChooseSum, OrdinaryMemoryPassesThroughACachedSlotWhereItIsReadInPlace) {
  GroupTraits traits = Copying();
  EXPECT_EQ(ChooseSum(traits, 2, 5 << 20).longest_bytes, traits.slot_bytes);
  traits.reads_in_place = true;
  EXPECT_LT(ChooseSum(traits, 2, 5 << 20).longest_bytes, size_t{1} << 20);
  traits.slot_bytes = 4096;
  EXPECT_EQ(ChooseSum(traits, 2, 5 << 20).longest_bytes, 4096u);
}

}  // namespace
}  // namespace lockstep
