// When a refused request should come again, by the pace at which others end.
#include "runtime/engine/finish_rate.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

constexpr int64_t kSecond = 1'000'000'000;

TEST(FinishRate, KnowsNothingBeforeTwoRequestsEnded) {
  FinishRate rate;
  EXPECT_EQ(rate.SecondsFor(1000, 7 * kSecond), 1);
  rate.Add(7 * kSecond);
  EXPECT_EQ(rate.SecondsFor(1000, 100 * kSecond), 1);
}

TEST(FinishRate, CountsWithThePaceOfTheLastRequests) {
  FinishRate rate;
  for (int i = 0; i <= 10; ++i) rate.Add(100 * kSecond + i * kSecond / 4);
  const int64_t now = 100 * kSecond + 10 * kSecond / 4;
  EXPECT_EQ(rate.SecondsFor(4, now), 1);
  EXPECT_EQ(rate.SecondsFor(100, now), 25);
  EXPECT_EQ(rate.SecondsFor(101, now), 26);
  EXPECT_EQ(rate.SecondsFor(0, now), 1);
  EXPECT_EQ(rate.SecondsFor(1'000'000, now), FinishRate::kMostSeconds);
  // Nothing has ended for as long again: half the pace.
  EXPECT_EQ(rate.SecondsFor(100, now + 10 * kSecond / 4), 50);
}

TEST(FinishRate, ForgetsWhatIsLongAgo) {
  FinishRate rate;
  for (size_t i = 0; i < FinishRate::kLast; ++i) rate.Add(static_cast<int64_t>(i) * 60 * kSecond);
  const int64_t later = 3000 * kSecond;
  for (size_t i = 0; i < FinishRate::kLast; ++i)
    rate.Add(later + static_cast<int64_t>(i) * kSecond / 10);
  EXPECT_EQ(rate.SecondsFor(100, later + 31 * kSecond / 10), 10);
}

}  // namespace
}  // namespace lockstep
