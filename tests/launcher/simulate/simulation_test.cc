#include "launcher/simulate/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/launcher/simulate/cluster.h"

namespace lockstep {
namespace {

using testing::ClusterOf;
using testing::OptionsFor;
using testing::Simulated;
using testing::StepsOf;

std::vector<TraceRequest> TraceOf(double rate, double duration_s, uint64_t seed = 1) {
  TraceShape shape;
  shape.seed = seed;
  shape.rate = rate;
  shape.duration_s = duration_s;
  shape.prompt = {400, 0.7, 2000};
  shape.output = {60, 0.7, 500};
  return MakeTrace(shape);
}

planner::Way PlanOf(const SimulatedCluster& cluster, int64_t prompt) {
  planner::Load load = cluster.load;
  load.users = 1;
  load.context = load.prompt = prompt;
  planner::Answer answer = planner::Predict(cluster.model, cluster.hardware, cluster.engine, load);
  return cluster.model.shares.size() > 1 ? answer.tensor : answer.single;
}

// The plan adds a whole step for the first token, which the scheduler takes from the last chunk: a
// simulation differs by that step, but for the head, which it reads once. A step's time is rounded
// to a nanosecond.
TEST(Simulation, OneRequestsFirstTokenIsThePlans) {
  const SimulatedCluster cluster = ClusterOf(1);
  const SimulationResult result =
      Simulated(cluster, OptionsFor(cluster), {{0, 1000, 50, -1, 0, ""}});
  const planner::Way way = PlanOf(cluster, 1000);
  const double head_s = static_cast<double>(cluster.model.whole.head) / (100e9 * 0.8);
  EXPECT_NEAR(result.all.first_token.mean(), way.prefill.total() + head_s, 4e-9);
  EXPECT_LT(result.all.first_token.mean(), way.ttft_s);
  // 50 tokens, of which 49 are steps of contexts from 1001 on.
  EXPECT_EQ(result.all.steps, 4u + 49u);
  EXPECT_EQ(result.all.inter_token.count(), 49u);
  planner::Load load = cluster.load;
  load.context = load.prompt = 1025;  // the middle one; what a step reads is linear in it
  load.users = 1;
  const double step_s = planner::Predict(cluster.model, cluster.hardware, cluster.engine, load)
                            .single.decode.front()
                            .step.total();
  EXPECT_NEAR(result.all.inter_token.mean(), step_s, 2e-9);
  EXPECT_NEAR(result.seconds, result.all.busy_s, 1e-6);
}

// Of two ranks each message takes at most a tenth more or less than the plan's latency.
TEST(Simulation, OneRequestsFirstTokenIsThePlansByMessages) {
  const SimulatedCluster cluster = ClusterOf(2);
  const SimulationResult result =
      Simulated(cluster, OptionsFor(cluster), {{0, 1000, 1, -1, 0, ""}});
  const planner::Way way = PlanOf(cluster, 1000);
  const double sums = 4 * (2 * cluster.model.config.num_hidden_layers + 1);
  const double head_s = static_cast<double>(cluster.model.slices[0].head) / (100e9 * 0.8);
  const double one_or_two = 2 * sums * 20e-6;
  EXPECT_NEAR(result.all.first_token.mean(), way.prefill.total() + head_s, 0.1 * one_or_two);
}

TEST(Simulation, TheSameSeedGivesTheSameHistory) {
  SimulatedCluster cluster = ClusterOf(2);
  const std::vector<TraceRequest> trace = TraceOf(0.5, 60);
  const SimulationResult first = Simulated(cluster, OptionsFor(cluster), trace);
  const SimulationResult again = Simulated(cluster, OptionsFor(cluster), trace);
  EXPECT_EQ(first.digest, again.digest);
  EXPECT_EQ(first.seconds, again.seconds);
  cluster.seed = 2;  // of the messages' latencies
  EXPECT_NE(Simulated(cluster, OptionsFor(cluster), trace).digest, first.digest);
  EXPECT_NE(Simulated(ClusterOf(2), OptionsFor(ClusterOf(2)), TraceOf(0.5, 60, 2)).digest,
            first.digest);
}

// One server, Poisson arrivals, equal service of D seconds: the mean wait is D r / (2 (1 - r)) at a
// load of r (Pollaczek and Khinchine). The bound is some four standard errors of 20,000 waits, as
// other seeds show them.
TEST(Simulation, OneSequenceAtATimeIsTheQueueOfTheBook) {
  SimulatedCluster cluster = ClusterOf(1);
  cluster.load.users = 1;
  SimulationOptions options = OptionsFor(cluster);
  options.limits.prefix_cache = false;
  options.max_queue = 100'000;
  const double service_s = Simulated(cluster, options, {{0, 200, 3, -1, 0, ""}}).seconds;
  for (const double load : {0.3, 0.6}) {
    TraceShape shape;
    shape.rate = load / service_s;
    shape.duration_s = 20'000 / shape.rate;
    shape.prompt = {200, 0};
    shape.output = {3, 0};
    const SimulationResult result = Simulated(cluster, options, MakeTrace(shape));
    const double wanted = service_s * load / (2 * (1 - load));
    EXPECT_NEAR(result.all.queue.mean() / wanted, 1, 0.1) << load;
    EXPECT_NEAR(result.all.busy_s / result.seconds, load, 0.05 * load);
  }
}

// The clock is idle when the first one comes, whose step begins at once; 256 more may wait.
TEST(Simulation, AFullQueueTurnsAway) {
  const SimulatedCluster cluster = ClusterOf(1);
  const std::vector<TraceRequest> trace(1000, TraceRequest{1, 100, 5, -1, 0, ""});
  const SimulationResult result = Simulated(cluster, OptionsFor(cluster), trace);
  EXPECT_EQ(result.all.completed, 257u);
  EXPECT_EQ(result.all.rejected, 743u);
  EXPECT_EQ(result.all.output_tokens, 257u * 5);
}

TEST(Simulation, WhatCanNeverRunIsRefusedWithTheReason) {
  const SimulatedCluster cluster = ClusterOf(1);
  const SimulationResult result =
      Simulated(cluster, OptionsFor(cluster), {{0, 5000, 1, -1, 0, ""}, {0, 100, 1, -1, 0, ""}});
  EXPECT_EQ(result.all.refused, 1u);
  EXPECT_EQ(result.all.completed, 1u);
  EXPECT_THAT(result.refusal, ::testing::HasSubstr("the prompt has 5000 tokens"));
}

// 400 common tokens are 25 blocks; the second prompt comes when the first has been computed.
TEST(Simulation, CommonBeginningsAreComputedOnce) {
  const SimulatedCluster cluster = ClusterOf(1);
  SimulationOptions options = OptionsFor(cluster);
  const std::vector<TraceRequest> trace = {{0, 450, 2, 1, 400, ""}, {100, 460, 2, 1, 400, ""}};
  EXPECT_EQ(Simulated(cluster, options, trace).all.cached_tokens, 400u);
  options.limits.prefix_cache = false;
  EXPECT_EQ(Simulated(cluster, options, trace).all.cached_tokens, 0u);
}

// Requests of a group at one home share what others would compute each.
TEST(Simulation, AffinityFindsCommonBeginnings) {
  SimulatedCluster cluster = ClusterOf(1);
  cluster.replicas = 4;
  SimulationOptions options = OptionsFor(cluster);
  TraceShape shape;
  shape.rate = 4;
  shape.duration_s = 100;
  shape.prompt = {50, 0};
  shape.output = {10, 0};
  shape.prefix_groups = 20;
  shape.prefix_tokens = 320;
  const std::vector<TraceRequest> trace = MakeTrace(shape);
  const SimulationResult least = Simulated(cluster, options, trace);
  options.affinity = true;
  const SimulationResult home = Simulated(cluster, options, trace);
  // All but the first of each group, unless others come before it is computed.
  EXPECT_GE(home.all.cached_tokens, 320u * (trace.size() - 3 * 20));
  EXPECT_GT(home.all.cached_tokens, least.all.cached_tokens);
  EXPECT_EQ(home.replicas.size(), 4u);
}

// What is offered is too much, so that batches are full. A faster cluster may have others in its
// batches when the last request comes, and end up to one of the longest steps later than otherwise.
TEST(Simulation, MoreBandwidthIsNeverSlower) {
  for (const uint64_t seed : {1, 2, 3}) {
    const std::vector<TraceRequest> trace = TraceOf(4, 60, seed);
    double before = 0;
    for (const double gb_per_s : {25.0, 50.0, 75.0, 100.0, 200.0, 400.0}) {
      const SimulatedCluster cluster = ClusterOf(1, gb_per_s);
      SimulationOptions options = OptionsFor(cluster);
      options.max_queue = 100'000;
      const SimulationResult result = Simulated(cluster, options, trace);
      const double rate = static_cast<double>(result.all.output_tokens) / result.seconds;
      const auto longest =
          StepsOf(cluster)->Cost(planner::StepRows{.decodes = 16,
                                                   .prompt_rows = 256,
                                                   .outputs = 16,
                                                   .cached = 16 * 4096.0,
                                                   .decode_positions = 16 * 4096.0,
                                                   .prompt_positions = 256 * 4096.0});
      ASSERT_TRUE(longest.ok());
      EXPECT_GE(rate, before * (1 - longest->total() / result.seconds)) << gb_per_s;
      before = rate;
    }
  }
}

// A fleet's calibrated steps against the messages of one cluster that has the same trace.
TEST(Simulation, AFleetsStepsAreThoseOfMessages) {
  SimulatedCluster cluster = ClusterOf(4);
  const std::vector<TraceRequest> trace = TraceOf(0.5, 30);
  const SimulationResult alone = Simulated(cluster, OptionsFor(cluster), trace);
  cluster.replicas = 2;
  const std::unique_ptr<StepModel> steps = StepsOf(cluster);
  SimulationOptions options = OptionsFor(cluster);
  options.replicas = 1;
  const auto fleet = Simulate(trace, options, steps.get());
  ASSERT_TRUE(fleet.ok());
  // Jitter is a tenth of each latency, and the mean of a step's many messages varies less.
  EXPECT_NEAR(fleet->all.first_token.mean() / alone.all.first_token.mean(), 1, 0.03);
  EXPECT_NEAR(fleet->all.inter_token.mean() / alone.all.inter_token.mean(), 1, 0.03);
}

std::vector<MeasuredTest> TestsOf(StepModel& steps, double read, double arithmetic, double rest) {
  std::vector<MeasuredTest> tests;
  for (const double batch : {1.0, 4.0, 16.0}) {
    MeasuredTest test{.decode = true, .tokens = 31, .context = 100, .batch = batch};
    const double positions = batch * 116;
    const auto cost = steps.Cost(planner::StepRows{
        .decodes = batch, .outputs = batch, .cached = positions, .decode_positions = positions});
    EXPECT_TRUE(cost.ok());
    test.tokens_per_s = batch / (read * cost->parts.read + rest);
    tests.push_back(test);
  }
  const auto cost = steps.Cost(planner::StepRows{
      .prompt_rows = 256, .outputs = 1, .cached = 256, .prompt_positions = 256 * 128.0});
  EXPECT_TRUE(cost.ok());
  tests.push_back({.tokens = 256,
                   .tokens_per_s = 256 / (read * cost->parts.read +
                                          arithmetic * cost->parts.arithmetic + rest)});
  tests.push_back({.ranks = 7, .tokens = 1, .tokens_per_s = 1});  // of another cluster
  return tests;
}

TEST(StepModel, FindsTheFactorsBehindWhatWasMeasured) {
  const SimulatedCluster cluster = ClusterOf(1);
  const auto tests = TestsOf(*StepsOf(cluster), 1.3, 0.7, 0.004);
  const std::unique_ptr<StepModel> steps = StepsOf(cluster, tests);
  EXPECT_NEAR(steps->calibration().read, 1.3, 1e-6);
  EXPECT_NEAR(steps->calibration().step_s, 0.004, 1e-8);
  EXPECT_NEAR(steps->calibration().arithmetic, 0.7, 1e-6);
  EXPECT_EQ(steps->calibration().decode_tests, 3);
  EXPECT_EQ(steps->calibration().prefill_tests, 1);
}

}  // namespace
}  // namespace lockstep
