#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "runtime/decode/candidates.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

TEST(ExpSum, AnyOrderAndAnyCutGiveTheSameBits) {
  std::mt19937_64 random(testing::TestSeed());
  for (const double spread : {0.0, 1.0, 30.0, 3000.0}) {
    std::normal_distribution<double> normal(0, spread);
    std::vector<double> terms;
    for (int i = 0; i < 500; ++i) terms.push_back(normal(random));
    ExpSum whole;
    for (const double term : terms) whole.Add(term);
    for (int turn = 0; turn < 20; ++turn) {
      std::shuffle(terms.begin(), terms.end(), random);
      ExpSum parts[3], sum;
      for (const double term : terms) parts[random() % 3].Add(term);
      for (const ExpSum& part : parts) sum.Add(part);
      EXPECT_EQ(sum.top, whole.top);
      EXPECT_TRUE(std::ranges::equal(sum.pieces, whole.pieces));
    }
    // Against a sum in long double.
    const double largest = *std::max_element(terms.begin(), terms.end());
    long double expected = 0;
    for (const double term : terms) expected += std::exp(static_cast<long double>(term) - largest);
    EXPECT_NEAR(whole.Log(), static_cast<double>(largest + std::log(expected)),
                1e-14 + 1e-15 * std::abs(largest));
  }
  EXPECT_EQ(ExpSum().Log(), -std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace lockstep
