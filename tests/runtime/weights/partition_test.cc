#include "runtime/weights/partition.h"

#include <cmath>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

TEST(CutByShares, CoversEverythingOnceInOrder) {
  std::mt19937_64 random(lockstep::testing::TestSeed());
  for (int round = 0; round < 500; ++round) {
    std::vector<double> shares(1 + random() % 12);
    for (double& share : shares)
      share = random() % 4 == 0 ? 0 : static_cast<double>(random() % 1000);
    shares[random() % shares.size()] += 1;
    const auto total = static_cast<int64_t>(random() % 5000);
    const auto ranges = CutByShares(total, shares);
    double sum = 0;
    for (const double share : shares) sum += share;
    int64_t next = 0;
    for (size_t rank = 0; rank < ranges.size(); ++rank) {
      EXPECT_EQ(ranges[rank].begin, next);
      EXPECT_GE(ranges[rank].end, ranges[rank].begin);
      EXPECT_LE(std::fabs(static_cast<double>(ranges[rank].size()) -
                          static_cast<double>(total) * shares[rank] / sum),
                1.0);
      next = ranges[rank].end;
    }
    EXPECT_EQ(next, total);
  }
}

TEST(CutByShares, CutsBetweenUnits) {
  EXPECT_EQ(CutByShares(1536, {1, 1, 1, 1, 1}, 32),
            (std::vector<Range>{{0, 320}, {320, 608}, {608, 928}, {928, 1216}, {1216, 1536}}));
  // Fewer units than ranks, and a total that is no multiple of the unit.
  EXPECT_EQ(CutByShares(32, {1, 1, 1}, 32), (std::vector<Range>{{0, 0}, {0, 32}, {32, 32}}));
  EXPECT_EQ(CutByShares(72, {1, 1}, 32), (std::vector<Range>{{0, 32}, {32, 72}}));
}

TEST(CutByShares, GivesThreeRanksOfGlm47ThirtyTwoHeadsEach) {
  for (const Range& range : CutByShares(96, {1, 1, 1})) EXPECT_EQ(range.size(), 32);
}

TEST(KvHeadsOf, AreHeldByBothSidesOfACutThatStraddlesOne) {
  EXPECT_EQ(KvHeadsOf({0, 32}, 12), (Range{0, 3}));
  EXPECT_EQ(KvHeadsOf({32, 64}, 12), (Range{2, 6}));
  EXPECT_EQ(KvHeadsOf({64, 96}, 12), (Range{5, 8}));
  EXPECT_EQ(KvHeadsOf({5, 5}, 12).size(), 0);
}

TEST(ValidateShares, RefusesWrongCountsAndValues) {
  EXPECT_EQ(ValidateShares({}, 3).value(), (std::vector<double>{1, 1, 1}));
  EXPECT_THAT(MessageOf(ValidateShares({1, 2}, 3).status()),
              ::testing::HasSubstr("2 shares for 3 ranks"));
  EXPECT_FALSE(ValidateShares({0, 0}, 2).ok());
  EXPECT_FALSE(ValidateShares({1, -1}, 2).ok());
  EXPECT_FALSE(ValidateShares({1, INFINITY}, 2).ok());
}

}  // namespace
}  // namespace lockstep
