#include "launcher/percentiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

namespace lockstep {
namespace {

TEST(Percentiles, AreThoseOfSortedNumbersWithinAFifthOfAPercent) {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> draw(-3, 2);
  std::vector<double> values;
  Percentiles all, first, second;
  for (int i = 0; i < 10'001; ++i) {
    values.push_back(draw(random));
    all.Add(values.back());
    (i % 3 == 0 ? first : second).Add(values.back());
  }
  first.Add(second);
  std::sort(values.begin(), values.end());
  for (const double part : {0.0, 0.01, 0.5, 0.9, 0.99, 1.0}) {
    const auto rank = static_cast<size_t>(std::max(1.0, std::ceil(part * 10'001)));
    EXPECT_NEAR(all.At(part) / values[rank - 1], 1, 0.002) << part;
    EXPECT_EQ(first.At(part), all.At(part));
  }
  EXPECT_EQ(first.count(), 10'001u);
}

TEST(Percentiles, ZeroStaysZeroAndNothingIsZero) {
  Percentiles percentiles;
  EXPECT_EQ(percentiles.At(0.5), 0);
  for (int i = 0; i < 3; ++i) percentiles.Add(0);
  percentiles.Add(8);
  EXPECT_EQ(percentiles.At(0.75), 0);
  EXPECT_NEAR(percentiles.At(0.76), 8, 0.016);
  EXPECT_EQ(percentiles.mean(), 2);
}

}  // namespace
}  // namespace lockstep
