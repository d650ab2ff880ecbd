#include "runtime/decode/stop.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/support/seed.h"

namespace lockstep {
namespace {

TEST(StopMatcher, WithoutStopStringsPassesEverything) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, HoldsBackWhatCouldBecomeAStopString) {
  StopMatcher matcher({"STOP"});
  EXPECT_EQ(matcher.Push("go ST"), "go ");
  EXPECT_EQ(matcher.Push("AR"), "STAR");
  EXPECT_EQ(matcher.Push(" STO"), " ");
  EXPECT_EQ(matcher.Flush(), "STO");
}

TEST(StopMatcher, CutsBeforeTheStopStringAndDropsTheRest) {
  StopMatcher matcher({"STOP"});
  EXPECT_EQ(matcher.Push("go ST"), "go ");
  EXPECT_EQ(matcher.Push("OP and on"), "");
  EXPECT_TRUE(matcher.matched());
  EXPECT_EQ(matcher.Push("more"), "");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcher, TheStringThatIsCompleteFirstWins) {
  StopMatcher matcher({"abcd", "bc"});
  EXPECT_EQ(matcher.Push("xabcd"), "xa");
  EXPECT_TRUE(matcher.matched());
}

TEST(StopMatcher, HowTheTextIsCutMakesNoDifference) {
  std::mt19937 random(lockstep::testing::TestSeed());
  const auto word = [&](size_t most) {
    std::string text;
    for (size_t i = 1 + random() % most; i > 0; --i) text += static_cast<char>('a' + random() % 3);
    return text;
  };
  for (int turn = 0; turn < 5'000; ++turn) {
    std::vector<std::string> stops;
    for (size_t i = random() % 4; i > 0; --i) stops.push_back(word(5));
    const std::string text = word(40);
    StopMatcher whole(stops);
    std::string expected = whole.Push(text);
    expected += whole.Flush();
    StopMatcher pieces(stops);
    std::string got;
    for (size_t at = 0; at < text.size();) {
      const size_t count = 1 + random() % 6;
      got += pieces.Push(std::string_view(text).substr(at, count));
      at += count;
    }
    got += pieces.Flush();
    ASSERT_EQ(got, expected) << text;
    ASSERT_EQ(pieces.matched(), whole.matched());
    if (!whole.matched()) {
      ASSERT_EQ(got, text);
    }
  }
}

TEST(FinishReason, HasTheNamesOfTheContract) {
  EXPECT_STREQ(FinishReasonName(FinishReason::kStop), "stop");
  EXPECT_STREQ(FinishReasonName(FinishReason::kLength), "length");
  EXPECT_STREQ(FinishReasonName(FinishReason::kCancelled), "cancelled");
  EXPECT_STREQ(FinishReasonName(FinishReason::kError), "error");
}

}  // namespace
}  // namespace lockstep
