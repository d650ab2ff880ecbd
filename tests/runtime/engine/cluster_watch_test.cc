#include "runtime/engine/cluster_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lockstep {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

constexpr int64_t kSecond = 1'000'000'000;

// A cluster of two: in every second of work 50 decode steps of 20 ms, two tokens each; rank 0
// computes 5 ms and exchanges 12 of them, rank 1 computes 13 and exchanges 4.
class Cluster {
 public:
  ClusterSample Work() {
    const uint64_t steps = 50;
    sample_.counts.decode_steps += steps;
    sample_.counts.decode_tokens += 2 * steps;
    sample_.counts.generation_tokens += 2 * steps;
    sample_.counts.decode_ns += steps * 20'000'000;
    Add(0, steps, 5, 12);
    Add(1, steps, 13, 4);
    return Idle();
  }
  ClusterSample Idle() {
    sample_.at_ns += kSecond;
    return sample_;
  }
  // All ranks join anew.
  void Rejoin() { sample_.ranks.assign(2, {}); }

 private:
  void Add(size_t rank, uint64_t steps, uint64_t compute_ms, uint64_t exchange_ms) {
    RankReport& report = sample_.ranks[rank].news.report;
    report.steps += steps;
    report.compute_ns += steps * compute_ms * 1'000'000;
    report.exchange_ns += steps * exchange_ms * 1'000'000;
    report.read_bytes += steps * 1000 * (rank + 1);
  }
  ClusterSample sample_{.at_ns = 77 * kSecond, .ranks = std::vector<RankFacts>(2)};
};

void ExpectTimes(const ClusterView& view) {
  ASSERT_TRUE(view.decode.has_value());
  EXPECT_NEAR(view.decode->step, 0.020, 1e-9);
  EXPECT_NEAR(view.decode->tokens, 2, 1e-9);
  ASSERT_EQ(view.decode->ranks.size(), 2u);
  const RankTimes &zero = view.decode->ranks[0], &one = view.decode->ranks[1];
  EXPECT_NEAR(zero.compute, 0.005, 1e-9);
  EXPECT_NEAR(zero.exchange, 0.012, 1e-9);
  EXPECT_NEAR(zero.rest, 0.003, 1e-9);
  EXPECT_NEAR(zero.skew, 0, 1e-9);
  EXPECT_NEAR(one.compute, 0.013, 1e-9);
  EXPECT_NEAR(one.skew, 0.008, 1e-9);
  EXPECT_NEAR(zero.read_bytes, 1000, 1e-9);
  EXPECT_NEAR(one.read_bytes, 2000, 1e-9);
  EXPECT_EQ(view.decode->waited_for, 1);
}

TEST(ClusterHistory, KnowsNothingWithoutSamplesAndNoTimesWithoutSteps) {
  ClusterHistory history;
  ClusterView view;
  history.Describe(&view);
  EXPECT_FALSE(view.decode.has_value());
  Cluster cluster;
  history.Add(cluster.Idle());
  history.Describe(&view);
  history.Add(cluster.Idle());
  history.Describe(&view);
  EXPECT_FALSE(view.decode.has_value());
  EXPECT_THAT(view.per_second, ElementsAre(0.0));
}

TEST(ClusterHistory, MakesRatesAndTimesOfWhatWasCounted) {
  ClusterHistory history;
  Cluster cluster;
  history.Add(cluster.Idle());
  for (int i = 0; i < 60; ++i) history.Add(cluster.Idle());
  for (int i = 0; i < 3; ++i) history.Add(cluster.Work());
  ClusterView view;
  history.Describe(&view);
  ExpectTimes(view);
  EXPECT_EQ(view.decode->age, 0);
  EXPECT_NEAR(view.generated.now, 3 * 100 / 5.0, 1e-9);
  EXPECT_NEAR(view.generated.minute, 300 / 60.0, 1e-9);
  EXPECT_NEAR(view.generated.five_minutes, 300 / 63.0, 1e-9);
  EXPECT_EQ(view.per_second.back(), 100);
}

TEST(ClusterHistory, TheLastTimesStayWhileNothingIsDecoded) {
  ClusterHistory history;
  Cluster cluster;
  history.Add(cluster.Idle());
  history.Add(cluster.Work());
  for (int i = 0; i < 100; ++i) history.Add(cluster.Idle());
  ClusterView view;
  history.Describe(&view);
  ExpectTimes(view);
  EXPECT_NEAR(view.decode->age, 100, 1e-9);
  for (int i = 0; i < 300; ++i) history.Add(cluster.Idle());
  ClusterView later;
  history.Describe(&later);
  EXPECT_FALSE(later.decode.has_value());
  EXPECT_EQ(later.per_second.size(), ClusterHistory::kSamples - 1);
}

TEST(ClusterHistory, RanksThatJoinAnewCountFromNothing) {
  ClusterHistory history;
  Cluster cluster;
  for (int i = 0; i < 20; ++i) history.Add(cluster.Work());
  ClusterSample nobody = cluster.Idle();
  nobody.ranks.clear();
  history.Add(nobody);
  cluster.Rejoin();
  history.Add(cluster.Work());
  ClusterView view;
  history.Describe(&view);
  ExpectTimes(view);
}

}  // namespace
}  // namespace lockstep
