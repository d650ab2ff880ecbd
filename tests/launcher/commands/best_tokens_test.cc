#include "launcher/commands/best_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "tests/support/seed.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

// What ranks that hold `cuts[r] .. cuts[r + 1]` of the vocabulary note of these rows.
std::vector<Json> Noted(const std::vector<std::vector<float>>& rows,
                        const std::vector<size_t>& cuts) {
  std::vector<Json> ranks;
  for (size_t rank = 0; rank + 1 < cuts.size(); ++rank) {
    BestTokens best;
    std::vector<float> logits;
    for (const std::vector<float>& row : rows) {
      logits.insert(logits.end(), row.begin() + static_cast<int64_t>(cuts[rank]),
                    row.begin() + static_cast<int64_t>(cuts[rank + 1]));
    }
    if (!logits.empty())
      best.Note(logits, static_cast<int64_t>(cuts[rank]), static_cast<int64_t>(rows.size()));
    ranks.push_back(best.ToJson());
  }
  return ranks;
}

TEST(BestTokens, OfAllRanksAreThoseOfTheWholeRows) {
  std::mt19937_64 random(lockstep::testing::TestSeed());
  std::normal_distribution<float> draw(3, 2);
  std::vector<std::vector<float>> rows(5, std::vector<float>(97));
  for (auto& row : rows) {
    for (float& logit : row) logit = draw(random);
  }
  const Json merged = MergeBestTokens(Noted(rows, {0, 1, 40, 40, 97})).value();
  ASSERT_EQ(merged.size(), rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    const std::vector<float>& row = rows[i];
    std::vector<int> order(row.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    const double mean = std::accumulate(row.begin(), row.end(), 0.0) / 97;
    double squares = 0;
    for (const float logit : row) squares += (logit - mean) * (logit - mean);
    EXPECT_EQ(merged[i]["token"], order[0]);
    EXPECT_NEAR(merged[i]["margin"].get<double>(),
                (row[order[0]] - row[order[1]]) / std::sqrt(squares / 97), 1e-6);
  }
}

TEST(BestTokens, OfEqualLogitsTheLowestIdIsTheBestAndClearOfNothing) {
  const Json merged = MergeBestTokens(Noted({{1, 5, 0, 5}}, {0, 2, 4})).value();
  EXPECT_EQ(merged[0]["token"], 1);
  EXPECT_EQ(merged[0]["margin"], 0);
}

TEST(BestTokens, NoMoreRowsAreNotedThanTravel) {
  const std::vector<std::vector<float>> rows(3 * BestTokens::kMostNoted, {1, 2});
  EXPECT_EQ(MergeBestTokens(Noted(rows, {0, 2}))->size(), BestTokens::kMostNoted);
}

TEST(BestTokens, WhatIsNotFiniteIsAnError) {
  for (const float wrong : {std::nanf(""), std::numeric_limits<float>::infinity()})
    EXPECT_FALSE(MergeBestTokens(Noted({{1, 2, wrong}}, {0, 1, 3})).ok());
}

}  // namespace
}  // namespace lockstep
