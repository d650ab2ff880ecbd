#include "runtime/engine/circuit_breaker.h"

#include <gtest/gtest.h>

namespace lockstep {
namespace {

using State = CircuitBreaker::State;

constexpr int64_t kSecond = 1'000'000'000;
constexpr CircuitOptions kThreeInAMinute = {
    .failures = 3, .window_ms = 60'000, .first_wait_ms = 10'000, .longest_wait_ms = 35'000};

class CircuitBreakerTest : public ::testing::Test {
 protected:
  // Opens the circuit by three failures at once.
  void Open() {
    for (int i = 0; i < 3; ++i) breaker_.Failed();
    ASSERT_EQ(breaker_.state(), State::kOpen);
  }
  // The attempt after the wait, which must be this long.
  void TryAfter(int64_t wait_s) {
    EXPECT_EQ(breaker_.RemainingMs(), wait_s * 1000);
    clock_.Advance(wait_s * kSecond - 1);
    EXPECT_FALSE(breaker_.MayTry());
    EXPECT_EQ(breaker_.RemainingMs(), 1);
    clock_.Advance(1);
    EXPECT_TRUE(breaker_.MayTry());
    EXPECT_EQ(breaker_.state(), State::kHalfOpen);
  }

  VirtualClock clock_;
  CircuitBreaker breaker_{kThreeInAMinute, clock_};
};

TEST_F(CircuitBreakerTest, RareFailuresNeverOpenIt) {
  for (int i = 0; i < 20; ++i) {
    breaker_.Failed();
    EXPECT_TRUE(breaker_.MayTry());
    EXPECT_EQ(breaker_.state(), State::kClosed);
    EXPECT_LE(breaker_.failures(), 2);
    clock_.Advance(31 * kSecond);  // never three within sixty
  }
}

TEST_F(CircuitBreakerTest, OpensAtTheLastFailureOfTheWindowAndTriesOnceAfterTheWait) {
  breaker_.Failed();
  clock_.Advance(30 * kSecond);
  breaker_.Failed();
  EXPECT_TRUE(breaker_.MayTry());
  clock_.Advance(30 * kSecond);
  breaker_.Failed();  // the first one was sixty seconds ago, which still counts
  EXPECT_EQ(breaker_.state(), State::kOpen);
  EXPECT_EQ(breaker_.failures(), 3);
  TryAfter(10);
  breaker_.Succeeded();
  EXPECT_EQ(breaker_.state(), State::kClosed);
  EXPECT_EQ(breaker_.RemainingMs(), 0);
}

TEST_F(CircuitBreakerTest, WaitsTwiceAsLongUpToABoundWhileAttemptsFail) {
  Open();
  for (const int64_t wait_s : {10, 20, 35, 35}) {
    TryAfter(wait_s);
    breaker_.Failed();
    EXPECT_EQ(breaker_.state(), State::kOpen);
  }
}

TEST_F(CircuitBreakerTest, AGroupThatComputesAMomentAndIsLostAgainWaitsLonger) {
  Open();
  TryAfter(10);
  breaker_.Succeeded();
  clock_.Advance(kSecond);
  breaker_.Failed();
  EXPECT_EQ(breaker_.state(), State::kOpen);
  TryAfter(20);
}

TEST_F(CircuitBreakerTest, AfterAQuietWindowItBeginsAnew) {
  Open();
  TryAfter(10);
  breaker_.Succeeded();
  clock_.Advance(61 * kSecond);
  breaker_.Failed();
  EXPECT_EQ(breaker_.state(), State::kClosed);
  breaker_.Failed();
  breaker_.Failed();
  TryAfter(10);
}

TEST(CircuitBreaker, WithoutANumberOfFailuresItNeverOpens) {
  VirtualClock clock;
  CircuitBreaker breaker({.failures = 0}, clock);
  for (int i = 0; i < 100; ++i) breaker.Failed();
  EXPECT_TRUE(breaker.MayTry());
  EXPECT_EQ(breaker.state(), CircuitBreaker::State::kClosed);
}

// Where the wait is longer than the window, nothing is left in it when an attempt fails.
TEST(CircuitBreaker, WaitsBeyondTheWindowStillDouble) {
  VirtualClock clock;
  CircuitBreaker breaker(
      {.failures = 1, .window_ms = 1'000, .first_wait_ms = 2'000, .longest_wait_ms = 8'000}, clock);
  for (const int64_t wait_ms : {2'000, 4'000, 8'000, 8'000}) {
    breaker.Failed();
    EXPECT_EQ(breaker.RemainingMs(), wait_ms);
    clock.Advance(wait_ms * 1'000'000);
    EXPECT_TRUE(breaker.MayTry());
  }
}

TEST(CircuitBreaker, NoWaitIsBeyondTheLongest) {
  VirtualClock clock;
  CircuitBreaker breaker({.failures = 1, .first_wait_ms = 5'000, .longest_wait_ms = 1'000}, clock);
  breaker.Failed();
  EXPECT_EQ(breaker.RemainingMs(), 1'000);
}

TEST(CircuitBreaker, TimeWithoutAGroupAgesNoFailure) {
  VirtualClock clock;
  CircuitBreaker breaker({.failures = 2, .window_ms = 1'000, .first_wait_ms = 100}, clock);
  breaker.Failed();
  // Its weights are read for long.
  clock.Advance(5'000'000'000);
  breaker.Skip(5'000'000'000);
  clock.Advance(900'000'000);
  breaker.Failed();
  EXPECT_FALSE(breaker.MayTry());
}

}  // namespace
}  // namespace lockstep
