// Predictions: by hand for small cases, and what must hold for all.
#include "runtime/planner/predict.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "runtime/planner/known_models.h"
#include "tests/support/seed.h"

namespace lockstep::planner {
namespace {

using ::testing::HasSubstr;

constexpr double kGib = 1024.0 * 1024 * 1024;

const CountedModel& Flash(int ranks) {
  static const auto counted = [](int count) {
    const auto checkpoint = KnownModel("GLM-4.7-Flash", "q8_0");
    return *CountModel(**checkpoint, std::vector<double>(static_cast<size_t>(count), 1));
  };
  static const CountedModel one = counted(1), two = counted(2), four = counted(4);
  return ranks == 1 ? one : ranks == 2 ? two : four;
}

Hardware Machines(int nodes) {
  Hardware hardware;
  hardware.nodes = hardware.cloud_nodes = nodes;
  hardware.node.memory_gib = {100, "test"};
  hardware.node.gb_per_s = {200, "test"};
  hardware.node.tops = {10, "test"};
  hardware.node.watts = {50, "test"};
  hardware.link.latency_us = {20, "test"};
  hardware.link.gb_per_s = {2, "test"};
  return hardware;
}

Engine Program() {
  Engine engine;
  engine.read_share = {0.5, "test"};
  engine.arithmetic_share = {0.25, "test"};
  return engine;
}

Load ShortLoad() {
  Load load;
  load.context = 1000;
  load.prompt = 1000;
  load.chunk = 1000;
  load.cache = kernels::CacheType::kBF16;
  load.wire_bytes = 2;
  return load;
}

// What one token reads of the model, summed here.
double BytesOfOne(const RankBytes& bytes, const ModelConfig& config, double experts_read) {
  double sum = static_cast<double>(bytes.head);
  for (const LayerBytes& layer : bytes.layers) {
    sum += static_cast<double>(layer.always) + static_cast<double>(layer.experts) * experts_read /
                                                   static_cast<double>(config.n_routed_experts);
  }
  return sum;
}

TEST(Predict, OneNodeReadsWeightsAndCacheAtItsShareOfTheBandwidth) {
  const CountedModel& model = Flash(1);
  const Answer answer = Predict(model, Machines(1), Program(), ShortLoad());
  ASSERT_TRUE(answer.single.fits) << answer.single.reason;
  const double cache = 1000.0 * 47 * 2 * (512 + 64);
  const double seconds = (BytesOfOne(model.whole, model.config, 4) + cache) / (200e9 * 0.5);
  EXPECT_NEAR(answer.single.decode.front().tokens_per_s, 1 / seconds, 1e-6 / seconds);
  EXPECT_EQ(answer.single.decode.front().step.Longest(), "memory bandwidth");
  EXPECT_NEAR(answer.single.joules_per_token, 50 * seconds, 1e-6);
  EXPECT_FALSE(answer.pipeline.fits);
  EXPECT_FALSE(answer.tensor.fits);
  EXPECT_THAT(answer.tensor.reason, HasSubstr("nobody to divide"));
}

TEST(Predict, SlicesAddTheirBandwidthsAndExchangeTwiceALayer) {
  const CountedModel& model = Flash(2);
  const Answer answer = Predict(model, Machines(2), Program(), ShortLoad());
  const double cache = 1000.0 * 47 * 2 * (512 + 64);  // latents, which every rank keeps whole
  double slowest = 0;
  for (const RankBytes& slice : model.slices)
    slowest = std::max(slowest, (BytesOfOne(slice, model.config, 4) + cache) / (200e9 * 0.5));
  // 4,096 bytes in one step: each rank writes to the other.
  const double exchanges = 95 * (20e-6 + 2048 * 2 / 2e9);
  EXPECT_NEAR(1 / answer.tensor.decode.front().tokens_per_s, slowest + exchanges, 1e-9);
  // One after the other, and two messages: to the second stage, and the token back.
  const double in_turn = (BytesOfOne(model.whole, model.config, 4) + cache) / (200e9 * 0.5) +
                         2 * (20e-6 + 2048 * 2 / 2e9);
  EXPECT_NEAR(1 / answer.pipeline.decode.front().tokens_per_s, in_turn, 1e-8);
}

double ExchangeOfFour(const Engine& engine) {
  return Predict(Flash(4), Machines(4), engine, ShortLoad()).tensor.decode.front().step.exchange;
}

TEST(Predict, ARingTakesAsManyStepsAsItHasLinksTwice) {
  Engine ring = Program();
  ring.ring = true;
  EXPECT_NEAR(ExchangeOfFour(ring), 95 * (6 * 20e-6 + 1.5 * 4096 / 2e9), 1e-9);
  EXPECT_NEAR(ExchangeOfFour(Program()), 95 * (20e-6 + 3 * 4096 / 2e9), 1e-9);
}

TEST(Predict, UsersShareWhatAllOfThemRead) {
  Load load = ShortLoad();
  load.users = 3;
  const CountedModel& model = Flash(1);
  const Way way = Predict(model, Machines(1), Program(), load).single;
  ASSERT_EQ(way.decode.size(), 3u);
  EXPECT_EQ(way.decode[0].users, 1);
  EXPECT_EQ(way.decode[1].users, 2);
  EXPECT_EQ(way.decode[2].users, 3);
  const double distinct = 64 * (1 - std::pow(1 - 4.0 / 64, 3));
  const double cache = 3 * 1000.0 * 47 * 2 * (512 + 64);
  const double seconds = (BytesOfOne(model.whole, model.config, distinct) + cache) / (200e9 * 0.5);
  EXPECT_NEAR(way.decode[2].tokens_per_s, 3 / seconds, 1e-5 / seconds);
}

TEST(Predict, StagesThatTakeTurnsAreAllBusyWithAsManyUsers) {
  Engine turns = Program();
  turns.in_turns = true;
  Load load = ShortLoad();
  load.users = 2;
  const Way alone = Predict(Flash(2), Machines(2), Program(), load).pipeline;
  const Way together = Predict(Flash(2), Machines(2), turns, load).pipeline;
  EXPECT_EQ(alone.decode[0].tokens_per_s, together.decode[0].tokens_per_s);
  const double gain = together.decode[1].tokens_per_s / together.decode[0].tokens_per_s;
  EXPECT_GT(gain, 1.8);
  EXPECT_LE(gain, 2.0001);
}

TEST(Predict, DraftsAddTheirRowsAndTheirTokens) {
  const CountedModel& model = Flash(1);
  Load load = ShortLoad();
  load.draft_acceptance = {0.8, 0.5};
  const Way way = Predict(model, Machines(1), Program(), load).single;
  const LayerBytes& layer = model.whole.layers.back();
  const double distinct = 64 * (1 - std::pow(1 - 4.0 / 64, 3));
  const double join = 2 * 2048 * 2048 * 2;  // in BF16, where the files have no layer for drafts
  const double drafts = 2 * (static_cast<double>(layer.always + model.whole.head) + join +
                             static_cast<double>(layer.experts) * 4 / 64);
  const double cache = 1000.0 * (47 + 2) * 2 * (512 + 64);
  const double seconds =
      (BytesOfOne(model.whole, model.config, distinct) + drafts + cache) / (200e9 * 0.5);
  EXPECT_NEAR(way.decode.front().tokens_per_s, (1 + 0.8 + 0.8 * 0.5) / seconds, 1e-3);
}

TEST(Predict, DraftsTakeMemoryAndExchanges) {
  Load load = ShortLoad();
  const Answer without = Predict(Flash(2), Machines(2), Program(), load);
  load.draft_acceptance = {0.8};
  const Answer with = Predict(Flash(2), Machines(2), Program(), load);
  for (size_t rank = 0; rank < 2; ++rank) {
    const RankBytes& slice = Flash(2).slices[rank];
    const LayerBytes& layer = slice.layers.back();
    EXPECT_EQ(with.tensor.ranks[rank].weight_bytes - without.tensor.ranks[rank].weight_bytes,
              layer.always + layer.experts + 2048 * 2048 * 2);
    // Of 47 layers before.
    EXPECT_EQ(with.tensor.ranks[rank].kv_bytes * 47, without.tensor.ranks[rank].kv_bytes * 48);
  }
  // The first stage has none.
  EXPECT_EQ(with.pipeline.ranks[0].weight_bytes, without.pipeline.ranks[0].weight_bytes);
  EXPECT_GT(with.pipeline.ranks[1].weight_bytes, without.pipeline.ranks[1].weight_bytes);
  // Two rows in 95 sums, and one in four more.
  EXPECT_NEAR(with.tensor.decode.front().step.exchange,
              95 * (20e-6 + 2 * 4096 / 2e9) + 4 * (20e-6 + 4096 / 2e9), 1e-9);
}

TEST(Predict, ADraftLayerIsCountedInItsOwnFormat) {
  const auto checkpoint = KnownModel("GLM-4.7", "nvfp4");
  const StatusOr<CountedModel> model = CountModel(**checkpoint, {1});
  ASSERT_TRUE(model.ok());
  // 3.93 G parameters of a layer and 52 M of what joins its inputs, in BF16.
  const LayerBytes& draft = model->whole.draft;
  EXPECT_NEAR(static_cast<double>(draft.always + draft.experts), 2 * (3.94e9 + 0.052e9), 0.04e9);
}

TEST(Predict, UnknownArithmeticIsNotFree) {
  Hardware blind = Machines(2);
  blind.node.tops = {};
  Engine untried = Program();
  untried.arithmetic_share = {};
  for (const auto& [hardware, engine] :
       {std::pair{blind, Program()}, std::pair{Machines(2), untried}}) {
    const Answer answer = Predict(Flash(2), hardware, engine, ShortLoad());
    for (const Way& way : {answer.single, answer.pipeline, answer.tensor}) {
      EXPECT_EQ(way.prefill_tokens_per_s, 0) << way.name;
      EXPECT_EQ(way.ttft_s, 0) << way.name;
      EXPECT_THAT(way.prefill_reason, HasSubstr("not known")) << way.name;
      EXPECT_TRUE(way.has_speed()) << way.name;
    }
  }
}

TEST(Predict, AWayThatTheEngineLacksIsAGuessWithItsConstants) {
  Engine stages = Program();
  stages.ways = {"single", "pipeline"};
  const Answer answer = Predict(Flash(2), Machines(2), stages, ShortLoad());
  EXPECT_TRUE(answer.single.has_speed() && answer.pipeline.has_speed());
  EXPECT_TRUE(answer.tensor.fits);
  EXPECT_GT(answer.tensor.max_context, 0);
  EXPECT_TRUE(answer.pipeline.measured);
  EXPECT_FALSE(answer.tensor.measured);
  EXPECT_THAT(answer.tensor.reason, HasSubstr("does not divide models so"));
  const Answer all = Predict(Flash(2), Machines(2), Program(), ShortLoad());
  EXPECT_TRUE(all.tensor.measured);
  EXPECT_EQ(answer.tensor.decode.front().tokens_per_s, all.tensor.decode.front().tokens_per_s);
}

TEST(Predict, APromptReadsItsWeightsForEveryChunkAndComputesEveryRow) {
  const CountedModel& model = Flash(1);
  Load load = ShortLoad();
  load.chunk = 500;
  const Way way = Predict(model, Machines(1), Program(), load).single;
  const double all =
      BytesOfOne(model.whole, model.config, 64) - static_cast<double>(model.whole.head);
  const double cache = (500.0 + 1000.0) * 47 * 2 * (512 + 64);
  const double read = (2 * all + cache) / (200e9 * 0.5);
  const RowWork work = WorkOf(model.config);
  const double operations =
      1000 * 2 * work.layer_parameters + 1000.0 * 500 * work.attention_per_position;
  const double seconds = read + operations / (10e12 * 0.25);
  EXPECT_NEAR(way.prefill_tokens_per_s, 1000 / seconds, 1e-4 * 1000 / seconds);
  EXPECT_NEAR(way.ttft_s, seconds + 1 / way.decode.front().tokens_per_s, 1e-4 * seconds);
}

TEST(Predict, StagesThatTakeTurnsOverlapTheChunksOfAPrompt) {
  Engine turns = Program();
  turns.in_turns = true;
  Load load = ShortLoad();
  load.chunk = 50;  // 20 chunks
  const Way alone = Predict(Flash(2), Machines(2), Program(), load).pipeline;
  const Way together = Predict(Flash(2), Machines(2), turns, load).pipeline;
  // 20 turns of one of two equal stages, and half a chunk's way behind it.
  EXPECT_NEAR(together.prefill.total() / alone.prefill.total(), 0.5 + 0.5 / 20, 0.02);
  load.chunk = 1000;
  const Way one = Predict(Flash(2), Machines(2), turns, load).pipeline;
  EXPECT_NEAR(one.prefill.total(),
              Predict(Flash(2), Machines(2), Program(), load).pipeline.prefill.total(),
              0.02 * one.prefill.total());
}

TEST(Predict, WhatDoesNotFitSaysWhatWouldAndHasNoSpeed) {
  Hardware small = Machines(1);
  Load load = ShortLoad();
  load.context = load.prompt = 200'000;
  // The weights and room for some positions.
  small.node.memory_gib.value = static_cast<double>(Flash(1).whole.weights()) / kGib + 4;
  const Way way = Predict(Flash(1), small, Program(), load).single;
  ASSERT_FALSE(way.fits);
  EXPECT_TRUE(way.decode.empty());
  EXPECT_GT(way.max_context, 0);
  EXPECT_LT(way.max_context, 200'000);
  EXPECT_THAT(way.reason, HasSubstr("--context " + std::to_string(way.max_context)));
  load.context = load.prompt = way.max_context;
  EXPECT_TRUE(Predict(Flash(1), small, Program(), load).single.fits);
  load.context = load.prompt = way.max_context + kBlockTokens;
  EXPECT_FALSE(Predict(Flash(1), small, Program(), load).single.fits);
  small.node.memory_gib.value = 10;
  const Way none = Predict(Flash(1), small, Program(), load).single;
  EXPECT_EQ(none.max_context, 0);
  EXPECT_THAT(none.reason, HasSubstr("more memory"));
}

TEST(Predict, CachesThatDoNotFitAreToldFromWeightsThatDoNot) {
  Hardware small = Machines(1);
  Load load = ShortLoad();
  load.users = 1000;
  load.chunk = 64;
  small.node.memory_gib.value = static_cast<double>(Flash(1).whole.weights()) / kGib + 2;
  const Way some = Predict(Flash(1), small, Program(), load).single;
  ASSERT_FALSE(some.fits);
  EXPECT_THAT(some.reason, ::testing::Not(HasSubstr("more nodes")));
  const size_t at = some.reason.find("--users ");
  ASSERT_NE(at, std::string::npos) << some.reason;
  load.users = std::stoll(some.reason.substr(at + 8));
  EXPECT_TRUE(Predict(Flash(1), small, Program(), load).single.fits);
  ++load.users;
  EXPECT_FALSE(Predict(Flash(1), small, Program(), load).single.fits);
  // Neither one user of so much, nor so many of one position.
  load.users = 10'000;
  load.context = load.prompt = 200'000;
  EXPECT_THAT(Predict(Flash(1), small, Program(), load).single.reason, HasSubstr("lower --users"));
  // Not even the scratch of one chunk.
  small.node.memory_gib.value = static_cast<double>(Flash(1).whole.weights()) / kGib + 0.001;
  EXPECT_THAT(Predict(Flash(1), small, Program(), load).single.reason,
              HasSubstr("lower --prefill-chunk"));
}

TEST(Predict, ExpertsThatDoNotFitTheCardAreReadFromBehindIt) {
  const Way all = Predict(Flash(1), Machines(1), Program(), ShortLoad()).single;
  Hardware card = Machines(1);
  card.node.memory_gib.value = 16;
  EXPECT_FALSE(Predict(Flash(1), card, Program(), ShortLoad()).single.fits);
  card.node.slow_gib = {32, "test"};
  card.node.slow_gb_per_s = {10, "test"};
  const Way way = Predict(Flash(1), card, Program(), ShortLoad()).single;
  ASSERT_TRUE(way.fits) << way.reason;
  EXPECT_EQ(way.decode.front().step.Longest(), "memory behind the card");
  // As many bytes, some of them 20 times as slow.
  const Parts &slow = way.decode.front().step, &fast = all.decode.front().step;
  EXPECT_NEAR(slow.read + slow.slow_read / 20, fast.read, 1e-6 * fast.read);
}

TEST(Predict, APurchaseBreaksEvenAgainstWhatTheCloudAsks) {
  Hardware hardware = Machines(2);
  hardware.price_usd = {8000, "test"};
  hardware.cloud_usd_per_month = {2016, "test"};
  hardware.usd_per_kwh = {0.5, "test"};
  hardware.hours_per_day = {24 * 12 / 9.125, "test"};  // 80 % of 1200 hours: 960 a month
  const Answer answer = Predict(Flash(2), hardware, Program(), ShortLoad());
  EXPECT_NEAR(answer.tensor.power_usd_per_month, 0.1 * 960 * 0.5, 1e-6);
  EXPECT_NEAR(answer.tensor.months_to_break_even, 8000 / (2016 - 48.0), 1e-6);
  EXPECT_NEAR(answer.single.purchase_usd, 4000, 1e-9);
  // One node does not do what two rented ones are paid for.
  EXPECT_EQ(answer.single.months_to_break_even, 0);
  EXPECT_THAT(answer.single.cost_reason, HasSubstr("against 2 nodes, not 1"));
  EXPECT_EQ(answer.tensor.cost_reason, "");
  hardware.price_usd = {};
  EXPECT_THAT(Predict(Flash(2), hardware, Program(), ShortLoad()).tensor.cost_reason,
              HasSubstr("price-usd"));
}

// A random question, and the same one with one thing better.
class Random {
 public:
  Random() : random_(lockstep::testing::TestSeed()) {}

  double Between(double low, double high) {
    return low * std::pow(high / low, std::uniform_real_distribution<double>()(random_));
  }
  int64_t Whole(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random_);
  }
  Hardware Cluster(int nodes) {
    Hardware hardware = Machines(nodes);
    hardware.node.memory_gib.value = Between(4, 80);
    hardware.node.gb_per_s.value = Between(40, 4000);
    hardware.node.tops.value = Between(0.2, 500);
    if (Whole(0, 1) == 1) {
      hardware.node.slow_gib = {Between(4, 80), "test"};
      hardware.node.slow_gb_per_s = {hardware.node.gb_per_s.value * Between(0.01, 1), "test"};
    }
    hardware.link.latency_us.value = Between(1, 300);
    hardware.link.gb_per_s.value = Between(0.1, 400);
    return hardware;
  }
  Engine Any() {
    Engine engine = Program();
    engine.ring = Whole(0, 1) == 1;
    engine.in_turns = Whole(0, 1) == 1;
    return engine;
  }
  Load AnyLoad() {
    Load load = ShortLoad();
    load.users = Whole(1, 12);
    load.context = Whole(1, 60'000);
    load.prompt = Whole(1, load.context);
    load.chunk = Whole(64, 4096);
    if (Whole(0, 2) == 0) load.draft_acceptance = {0.9};
    return load;
  }

 private:
  std::mt19937_64 random_;
};

void ExpectNoWorse(const Way& before, const Way& after, const char* what) {
  EXPECT_GE(after.max_context, before.max_context) << what << " " << before.name;
  if (!before.fits) return;
  ASSERT_TRUE(after.fits) << what << " " << before.name;
  for (size_t i = 0; i < before.decode.size(); ++i) {
    EXPECT_GE(after.decode[i].tokens_per_s, before.decode[i].tokens_per_s * (1 - 1e-9))
        << what << " " << before.name << " " << before.decode[i].users;
  }
  EXPECT_GE(after.prefill_tokens_per_s, before.prefill_tokens_per_s * (1 - 1e-9))
      << what << " " << before.name;
  EXPECT_LE(after.ttft_s, before.ttft_s * (1 + 1e-9)) << what << " " << before.name;
}

TEST(Predict, BetterHardwareIsNeverSlowerAndNeverFitsLess) {
  Random random;
  int fitting = 0;
  for (int trial = 0; trial < 150; ++trial) {
    const int nodes = std::vector<int>{1, 2, 4}[static_cast<size_t>(random.Whole(0, 2))];
    const Hardware before = random.Cluster(nodes);
    const Engine engine = random.Any();
    const Load load = random.AnyLoad();
    const Answer base = Predict(Flash(nodes), before, engine, load);
    fitting += base.tensor.fits || base.single.fits;
    const auto better = [&](const char* what, Figure Node::*node, Figure Link::*link, double by) {
      Hardware after = before;
      Figure& figure = node != nullptr ? after.node.*node : after.link.*link;
      figure.value *= by;
      const Answer answer = Predict(Flash(nodes), after, engine, load);
      ExpectNoWorse(base.single, answer.single, what);
      ExpectNoWorse(base.pipeline, answer.pipeline, what);
      ExpectNoWorse(base.tensor, answer.tensor, what);
    };
    const double by = random.Between(1.001, 20);
    better("more bandwidth", &Node::gb_per_s, nullptr, by);
    better("more memory", &Node::memory_gib, nullptr, by);
    better("more memory behind it", &Node::slow_gib, nullptr, by);
    better("more arithmetic", &Node::tops, nullptr, by);
    Hardware blind = before;
    blind.node.tops = {};
    const Answer unknown = Predict(Flash(nodes), blind, engine, load);
    // What is not known promises nothing of prompts, and of decoding no less than is there.
    EXPECT_EQ(unknown.single.prefill_tokens_per_s, 0);
    if (base.single.fits)
      EXPECT_LE(base.single.decode.back().tokens_per_s,
                unknown.single.decode.back().tokens_per_s * (1 + 1e-9));
    better("less latency", nullptr, &Link::latency_us, 1 / by);
    better("faster links", nullptr, &Link::gb_per_s, by);
  }
  EXPECT_GT(fitting, 40);  // otherwise nothing was compared
}

}  // namespace
}  // namespace lockstep::planner
