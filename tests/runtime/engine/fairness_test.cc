// Whose turn it is: fair shares between clients, priorities, preemption; and how many prompt rows a
// step may have beside decodes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "runtime/engine/prefill_budget.h"
#include "runtime/engine/scheduler.h"
#include "runtime/model/model.h"
#include "tests/runtime/engine/small_limits.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using testing::SmallLimits;

using ::testing::ElementsAre;

struct Who {
  std::string client;
  int32_t priority = 0;
  double weight = 1;
};

ScheduledRequest Ask(uint64_t id, const Who& who, int64_t prompt, int64_t max_tokens) {
  ScheduledRequest request;
  request.id = id;
  request.client = who.client;
  request.priority = who.priority;
  request.weight = who.weight;
  // Every prompt is another one.
  for (int64_t i = 0; i < prompt; ++i)
    request.tokens.push_back(static_cast<int32_t>((static_cast<int64_t>(id) * 31 + i) % 97));
  request.max_tokens = max_tokens;
  request.token_set.limit = 100;
  return request;
}

// A scheduler whose requests end after their tokens, with who got how many rows.
class Server {
 public:
  explicit Server(const SchedulerLimits& limits) : scheduler(limits) {}

  void Add(ScheduledRequest request) {
    who_[request.id] = request.client;
    ++present[request.client];
    left_[request.id] = request.max_tokens;
    scheduler.Add(std::move(request));
  }

  // One step; the ids that started in it.
  std::vector<uint64_t> Step() {
    StepPlan plan;
    std::vector<uint64_t> started;
    if (!scheduler.Next(&plan)) return started;
    for (const NewSequence& sequence : plan.started)
      started.push_back(*scheduler.RequestAt(sequence.slot));
    for (const RowSpan& span : plan.spans) {
      const uint64_t id = *scheduler.RequestAt(span.slot);
      rows[who_[id]] += span.count;
      if (span.output != SpanOutput::kSample) continue;
      scheduler.Append(span.slot, 1);
      if (--left_[id] == 0) {
        scheduler.Remove(id);
        ended.push_back(id);
        --present[who_[id]];
      }
    }
    return started;
  }

  Scheduler scheduler;
  std::map<std::string, int64_t> rows;
  std::vector<uint64_t> ended;
  std::map<std::string, int64_t> present;  // requests that wait or run

 private:
  std::map<uint64_t, std::string> who_;
  std::map<uint64_t, int64_t> left_;
};

TEST(FairQueue, ClientsTakeTurnsHoweverManyRequestsEachHas) {
  SchedulerLimits limits = SmallLimits();
  limits.max_sequences = 1;
  Server server(limits);
  for (uint64_t id = 1; id <= 6; ++id) server.Add(Ask(id, {"many"}, 10, 2));
  server.Add(Ask(7, {"few"}, 10, 2));
  server.Add(Ask(8, {"few"}, 10, 2));
  while (server.scheduler.waiting() + server.scheduler.running() > 0) server.Step();
  EXPECT_THAT(server.ended, ElementsAre(1, 7, 2, 8, 3, 4, 5, 6));
}

TEST(FairQueue, ALargeRequestWhoseTurnItIsIsNotOvertakenByEquals) {
  SchedulerLimits limits = SmallLimits();
  limits.kv_blocks = 12;
  Server server(limits);
  server.Add(Ask(1, {"z"}, 90, 20));  // 7 blocks
  server.Step();
  server.Add(Ask(2, {"b"}, 150, 30));  // 12
  for (uint64_t id = 3; id <= 9; ++id) server.Add(Ask(id, {"a"}, 10, 2));
  while (server.ended.empty()) server.Step();
  EXPECT_EQ(server.Step(), std::vector<uint64_t>{2});
}

TEST(FairQueue, BeingAwaySavesNothingUp) {
  SchedulerLimits limits = SmallLimits();
  limits.max_sequences = 1;
  Server server(limits);
  for (uint64_t id = 1; id <= 20; ++id) server.Add(Ask(id, {"always"}, 10, 2));
  while (server.ended.size() < 10) server.Step();
  for (uint64_t id = 21; id <= 30; ++id) server.Add(Ask(id, {"late"}, 10, 2));
  server.rows.clear();
  while (server.ended.size() < 20) server.Step();
  EXPECT_LE(std::abs(server.rows["late"] - server.rows["always"]), 2 * 12)
      << "the late one does not catch up on what it did not ask for";
}

TEST(FairQueue, ClientsThatAlwaysHaveWorkGetRowsByWeight) {
  std::mt19937 random(lockstep::testing::TestSeed());
  for (int turn = 0; turn < 10; ++turn) {
    Server server(SmallLimits());
    const std::map<std::string, double> weights = {{"a", 1}, {"b", 2}, {"c", 4}};
    uint64_t id = 0;
    int64_t longest = 0;
    // Twelve of each wait or run at any time, of any length.
    const auto fill = [&] {
      for (const auto& [client, weight] : weights) {
        while (server.present[client] < 12) {
          const auto prompt = static_cast<int64_t>(1 + random() % 120);
          const auto answer = static_cast<int64_t>(1 + random() % 60);
          longest = std::max(longest, prompt + answer);
          server.Add(Ask(id++, {client, 0, weight}, prompt, answer));
        }
      }
    };
    for (int step = 0; step < 4000; ++step) {
      fill();
      server.Step();
    }
    double least = 1e18, most = 0;
    for (const auto& [client, weight] : weights) {
      const double service = static_cast<double>(server.rows[client]) / weight;
      least = std::min(least, service);
      most = std::max(most, service);
    }
    // Whoever is behind gets the next place, so the distance is bounded by what can be under way at
    // once: a full set of sequences of the lightest client.
    EXPECT_LE(most - least, static_cast<double>(SmallLimits().max_sequences * longest));
    EXPECT_GT(least, 5.0 * (most - least)) << "the test ran too short to tell";
  }
}

TEST(Scheduler, ABetterPriorityStartsFirstAndTakesThePromptRows) {
  Server server(SmallLimits());
  server.Add(Ask(1, {"a", 5}, 200, 2));
  server.Add(Ask(2, {"b", -1}, 40, 2));
  EXPECT_THAT(server.Step(), ElementsAre(2, 1));
  EXPECT_EQ(server.rows["b"], 32);
  EXPECT_EQ(server.rows["a"], 0);
  server.Step();
  EXPECT_EQ(server.rows["b"], 40);
  EXPECT_EQ(server.rows["a"], 24);
}

TEST(Scheduler, ABetterPriorityTakesThePlaceOfTheYoungestOfTheWorst) {
  SchedulerLimits limits = SmallLimits();
  limits.max_sequences = 3;
  Server server(limits);
  server.Add(Ask(1, {"a", 1}, 20, 30));
  server.Add(Ask(2, {"a", 2}, 20, 30));
  server.Add(Ask(3, {"a", 2}, 20, 30));
  for (int i = 0; i < 8; ++i) server.Step();
  server.Add(Ask(4, {"b", 0}, 20, 2));
  EXPECT_THAT(server.Step(), ElementsAre(4));
  EXPECT_EQ(server.scheduler.preemptions(), 1);
  EXPECT_EQ(server.scheduler.waiting(), 1);
  // What it had computed is there still, in whole blocks.
  StepPlan plan;
  while (server.ended.empty()) server.Step();
  ASSERT_TRUE(server.scheduler.Next(&plan));
  ASSERT_EQ(plan.started.size(), 1u);
  EXPECT_EQ(server.scheduler.RequestAt(plan.started[0].slot), 3u);
  EXPECT_GT(plan.started[0].sampled, 0);
  EXPECT_EQ(plan.started[0].tokens.size(), 20u + static_cast<size_t>(plan.started[0].sampled));
  EXPECT_EQ(plan.started[0].shared.size(), plan.started[0].tokens.size() / kBlockTokens);
}

TEST(Scheduler, NobodyIsPreemptedByHisEqualsOrInVain) {
  SchedulerLimits limits = SmallLimits();
  limits.kv_blocks = 10;
  Server server(limits);
  server.Add(Ask(1, {"a", 1}, 80, 16));  // 6 blocks
  server.Add(Ask(2, {"a", 2}, 40, 8));   // 3
  server.Step();
  ASSERT_EQ(server.scheduler.running(), 2);
  server.Add(Ask(3, {"b", 1}, 100, 16));  // 8 blocks: more than the second one has
  server.Add(Ask(4, {"b", 2}, 20, 2));
  server.Step();
  EXPECT_EQ(server.scheduler.preemptions(), 0);
  EXPECT_EQ(server.scheduler.running(), 2);
}

TEST(Scheduler, BesideDecodesPromptsGetWhatIsAllowedAndAloneTheirChunk) {
  Scheduler scheduler(SmallLimits());
  scheduler.Add(Ask(1, {"a"}, 70, 5));
  StepPlan plan;
  ASSERT_TRUE(scheduler.Next(&plan, 0));
  EXPECT_EQ(plan.rows(), 32) << "nobody decodes";
  ASSERT_TRUE(scheduler.Next(&plan, 0));
  ASSERT_TRUE(scheduler.Next(&plan, 0));
  scheduler.Append(plan.spans[0].slot, 1);
  scheduler.Add(Ask(2, {"a"}, 100, 5));
  ASSERT_TRUE(scheduler.Next(&plan, 0));
  EXPECT_EQ(plan.rows(), 1);
  scheduler.Append(plan.spans[0].slot, 1);
  ASSERT_TRUE(scheduler.Next(&plan, 5));
  EXPECT_EQ(plan.rows(), 6);
}

// Steps whose time is `fixed` more with any prompt and `each` more by row.
double Delay(PrefillBudget* budget, double fixed, double each, int steps) {
  double added = 0;
  for (int i = 0; i < steps; ++i) {
    const int64_t rows = budget->rows();
    added = rows == 0 ? 0 : fixed + each * static_cast<double>(rows);
    budget->Learn(4, rows, 0.020 + added);
  }
  return added;
}

TEST(PrefillBudget, SettlesWhereTheStepTakesAsMuchLongerAsItMay) {
  for (const double fixed : {0.0, 0.010, 0.030}) {
    for (const double each : {0.0001, 0.001, 0.01}) {
      PrefillBudget budget(0.050, 4096);
      Delay(&budget, fixed, each, 400);
      const int64_t ideal = std::max<int64_t>(static_cast<int64_t>((0.050 - fixed) / each), 16);
      const int64_t rows = budget.rows() == 0 ? ideal : budget.rows();
      EXPECT_NEAR(static_cast<double>(rows), static_cast<double>(ideal), 1.0 + 0.05 * ideal)
          << fixed << " " << each;
    }
  }
}

TEST(PrefillBudget, FollowsWhenRowsGetDearer) {
  PrefillBudget budget(0.050, 4096);
  Delay(&budget, 0.001, 0.0001, 200);
  EXPECT_LE(Delay(&budget, 0.001, 0.001, 40), 0.052);
}

TEST(PrefillBudget, MeasuresADecodeAloneNowAndThenAndNeverStopsPrompts) {
  PrefillBudget budget(0.001, 4096);
  EXPECT_EQ(budget.rows(), 0) << "nothing is known yet";
  int64_t without = 0, fewest = 1 << 20;
  for (int i = 0; i < 330; ++i) {
    const int64_t rows = budget.rows();
    without += rows == 0;
    if (rows > 0) fewest = std::min(fewest, rows);
    budget.Learn(1, rows, 0.020 + 0.1 * static_cast<double>(rows));
  }
  EXPECT_EQ(without, 10);
  EXPECT_EQ(fewest, 16);
}

TEST(PrefillBudget, WithoutABoundItIsTheChunk) {
  PrefillBudget budget(0, 256);
  budget.Learn(4, 256, 100);
  EXPECT_EQ(budget.rows(), 256);
  EXPECT_EQ(PrefillBudget(1, 4).rows(), 0);
}

}  // namespace
}  // namespace lockstep
