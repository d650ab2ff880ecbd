#include "launcher/simulate/message_sums.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace lockstep {
namespace {

constexpr double kJitter = MessageSums::kJitter;

MessageSums SumsOf(int ranks, uint64_t seed) {
  auto sums = MessageSums::Create({ranks, 50, 2, seed, 1 << 20});
  EXPECT_TRUE(sums.ok()) << sums.status();
  return std::move(*sums);
}

double Seconds(MessageSums& sums, int ranks, double compute_s, double bytes) {
  const auto seconds = sums.Seconds(std::vector<double>(ranks, compute_s), 100, bytes);
  EXPECT_TRUE(seconds.ok()) << seconds.status();
  return *seconds;
}

// By hand: a rank writes to the others at 2 GB/s altogether, and a message's latency lies between
// 50 us / 1.1 and 1.2 times that.
TEST(MessageSums, TakeWhatLatencyAndBandwidthSay) {
  for (const int ranks : {2, 3, 8}) {
    MessageSums sums = SumsOf(ranks, 1);
    const double least_s = 50e-6 / (1 + kJitter / 2), most_s = least_s * (1 + kJitter);
    const double others = ranks - 1;
    for (const double bytes : {1000.0, 400'000.0}) {
      const double direct = others * bytes / 2e9, halves = 2 * others * bytes / ranks / 2e9;
      const bool is_direct = 50e-6 + direct <= 100e-6 + halves;
      const double hops = is_direct ? 1 : 2, wire = is_direct ? direct : halves;
      const double seconds = Seconds(sums, ranks, 0.01, bytes);
      EXPECT_GE(seconds, 0.01 + 100 * (hops * least_s + wire) * 0.999) << ranks << " " << bytes;
      EXPECT_LE(seconds, 0.01 + 100 * (hops * most_s + wire) * 1.001) << ranks << " " << bytes;
    }
  }
}

TEST(MessageSums, EveryMessageTravels) {
  MessageSums sums = SumsOf(3, 1);
  (void)Seconds(sums, 3, 0, 1000);
  EXPECT_EQ(sums.messages(), 100u * 3 * 2);
}

// What the others send it comes while it computes: only its last message is waited for.
TEST(MessageSums, TheSlowestRankHoldsUpTheOthers) {
  MessageSums sums = SumsOf(3, 1);
  const auto seconds = sums.Seconds({0.001, 0.5, 0.001}, 100, 1000);
  ASSERT_TRUE(seconds.ok());
  EXPECT_NEAR(*seconds, 0.5 + 51e-6, 6e-6);
}

TEST(MessageSums, ASeedSaysWhatHappens) {
  const auto history = [](uint64_t seed) {
    MessageSums sums = SumsOf(4, seed);
    std::vector<double> seconds;
    for (int step = 0; step < 5; ++step) seconds.push_back(Seconds(sums, 4, 0.001, 5000));
    return seconds;
  };
  EXPECT_EQ(history(1), history(1));
  EXPECT_NE(history(1), history(2));
}

}  // namespace
}  // namespace lockstep
