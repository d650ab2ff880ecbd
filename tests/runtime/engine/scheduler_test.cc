#include "runtime/engine/scheduler.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "runtime/engine/sequence_table.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

SchedulerLimits Limits() {
  return {.max_sequences = 4,
          .max_rows = 36,
          .max_outputs = 4,
          .prefill_rows = 32,
          .max_model_len = 256,
          .kv_blocks = 64};
}

ScheduledRequest Ask(uint64_t id, int64_t prompt, int64_t max_tokens) {
  ScheduledRequest request;
  request.id = id;
  request.tokens.assign(prompt, 1);
  request.max_tokens = max_tokens;
  request.token_set.limit = 100;
  return request;
}

// Takes the next plan and appends a token wherever one is sampled.
bool Step(Scheduler* scheduler, StepPlan* plan) {
  if (!scheduler->Next(plan)) return false;
  for (const RowSpan& span : plan->spans) {
    if (span.output == SpanOutput::kSample) scheduler->Append(span.slot);
  }
  return true;
}

TEST(Scheduler, NothingToDoGivesNoPlan) {
  Scheduler scheduler(Limits());
  StepPlan plan;
  EXPECT_FALSE(scheduler.Next(&plan));
}

TEST(Scheduler, CutsPromptsIntoChunks) {
  Scheduler scheduler(Limits());
  scheduler.Add(Ask(1, 70, 2));
  StepPlan plan;
  std::vector<int32_t> counts;
  std::vector<SpanOutput> outputs;
  for (int i = 0; i < 4; ++i) {
    ASSERT_TRUE(Step(&scheduler, &plan));
    ASSERT_EQ(plan.spans.size(), 1u);
    counts.push_back(plan.spans[0].count);
    outputs.push_back(plan.spans[0].output);
  }
  EXPECT_EQ(counts, (std::vector<int32_t>{32, 32, 6, 1}));
  EXPECT_EQ(outputs, (std::vector<SpanOutput>{SpanOutput::kNone, SpanOutput::kNone,
                                              SpanOutput::kSample, SpanOutput::kSample}));
}

TEST(Scheduler, DecodesKeepTheirRowWhileALongPromptComes) {
  Scheduler scheduler(Limits());
  scheduler.Add(Ask(1, 2, 100));
  StepPlan plan;
  ASSERT_TRUE(Step(&scheduler, &plan));
  scheduler.Add(Ask(2, 200, 10));
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(Step(&scheduler, &plan));
    ASSERT_FALSE(plan.spans.empty());
    EXPECT_EQ(plan.spans[0].slot, 0) << "the running decode comes first in every step";
    EXPECT_LE(plan.rows(), 33);
  }
}

TEST(Scheduler, AYoungDecodeIsNotHeldUpByAnOlderPrompt) {
  Scheduler scheduler(Limits());
  scheduler.Add(Ask(1, 200, 10));
  scheduler.Add(Ask(2, 1, 50));
  StepPlan plan;
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(Step(&scheduler, &plan));
    ASSERT_EQ(plan.spans.size(), 2u);
    EXPECT_EQ(plan.spans[0].slot, 1);
    EXPECT_EQ(plan.spans[0].count, 1);
  }
}

TEST(Scheduler, ARequestWaitsUntilItsBlocksAreFree) {
  SchedulerLimits limits = Limits();
  limits.kv_blocks = 4;
  Scheduler scheduler(limits);
  scheduler.Add(Ask(1, 30, 18));  // 47 positions: 3 blocks
  scheduler.Add(Ask(2, 30, 3));   // 2 blocks
  StepPlan plan;
  ASSERT_TRUE(Step(&scheduler, &plan));
  EXPECT_EQ(plan.started.size(), 1u);
  EXPECT_EQ(scheduler.waiting(), 1);
  scheduler.Remove(1);
  ASSERT_TRUE(Step(&scheduler, &plan));
  EXPECT_EQ(plan.released, (std::vector<int32_t>{0}));
  ASSERT_EQ(plan.started.size(), 1u);
  EXPECT_EQ(plan.started[0].slot, 0) << "the slot is free for the same plan's newcomer";
}

TEST(Scheduler, ARemovedRequestHasNoRowsInTheNextPlan) {
  Scheduler scheduler(Limits());
  scheduler.Add(Ask(1, 5, 50));
  scheduler.Add(Ask(2, 5, 50));
  StepPlan plan;
  ASSERT_TRUE(Step(&scheduler, &plan));
  ASSERT_EQ(plan.spans.size(), 2u);
  scheduler.Remove(1);
  EXPECT_FALSE(scheduler.RequestAt(0).has_value());
  ASSERT_TRUE(Step(&scheduler, &plan));
  ASSERT_EQ(plan.spans.size(), 1u);
  EXPECT_EQ(plan.spans[0].slot, 1);
}

TEST(Scheduler, RefusesWhatCanNeverRun) {
  const Scheduler scheduler(Limits());
  EXPECT_TRUE(scheduler.Admissible(255, 1).ok());
  for (const auto& [prompt, max_tokens] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 1}, {256, 1}, {1'000'000, 1}, {255, 2}, {10, 0}, {10, -5}, {10, 1'000'000}}) {
    const Status status = scheduler.Admissible(prompt, max_tokens);
    EXPECT_FALSE(status.ok()) << prompt << " + " << max_tokens;
    EXPECT_EQ(KindOf(status), ErrorKind::kRequest);
  }
  SchedulerLimits small = Limits();
  small.kv_blocks = 3;
  EXPECT_FALSE(Scheduler(small).Admissible(40, 20).ok());
}

TEST(Scheduler, APlanCarriesNoMorePromptsThanItMayWeigh) {
  SchedulerLimits limits = Limits();
  limits.plan_tokens = 100;
  Scheduler scheduler(limits);
  EXPECT_TRUE(scheduler.Admissible(100, 1).ok());
  const Status large = scheduler.Admissible(101, 1);
  EXPECT_EQ(KindOf(large), ErrorKind::kRequest) << large;
  EXPECT_EQ(SchedulerLimits().plan_tokens * sizeof(int32_t), size_t{32} << 20);
  scheduler.Add(Ask(1, 100, 1));
  scheduler.Add(Ask(2, 60, 1));
  ScheduledRequest biased = Ask(3, 10, 1);
  for (int32_t id = 0; id < 11; ++id) biased.params.logit_bias.emplace_back(id, 1.0f);
  scheduler.Add(std::move(biased));
  scheduler.Add(Ask(4, 10, 1));
  StepPlan plan;
  std::vector<size_t> started;
  for (int i = 0; i < 3; ++i) {
    ASSERT_TRUE(Step(&scheduler, &plan));
    started.push_back(plan.started.size());
  }
  EXPECT_EQ(started, (std::vector<size_t>{1, 1, 2})) << "100; 60; 10 + 33 and 10";
}

TEST(Scheduler, PromptsShareTheRowsOfAStepEvenly) {
  Scheduler scheduler(Limits());
  scheduler.Add(Ask(1, 200, 2));
  scheduler.Add(Ask(2, 4, 2));
  scheduler.Add(Ask(3, 30, 2));
  StepPlan plan;
  ASSERT_TRUE(Step(&scheduler, &plan));
  std::vector<std::pair<int32_t, int32_t>> rows;
  for (const RowSpan& span : plan.spans) rows.emplace_back(span.slot, span.count);
  EXPECT_EQ(rows, (std::vector<std::pair<int32_t, int32_t>>{{0, 14}, {1, 4}, {2, 14}}));
}

TEST(Scheduler, WithFewerRowsThanPromptsTheFirstAdmittedComeFirst) {
  SchedulerLimits limits = Limits();
  limits.prefill_rows = 2;
  Scheduler scheduler(limits);
  for (uint64_t id = 1; id <= 3; ++id) scheduler.Add(Ask(id, 20 - static_cast<int64_t>(id), 2));
  StepPlan plan;
  ASSERT_TRUE(Step(&scheduler, &plan));
  ASSERT_EQ(plan.spans.size(), 2u);
  EXPECT_EQ(plan.spans[0].slot, 0);
  EXPECT_EQ(plan.spans[0].count, 1);
  EXPECT_EQ(plan.spans[1].slot, 1);
}

// Random arrivals, ends and cancellations; every plan is applied to a table that checks it as a
// worker does.
TEST(Scheduler, PlansAlwaysFitTheWorkersStateAndEverythingEnds) {
  std::mt19937 random(lockstep::testing::TestSeed());
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>(random() % static_cast<uint64_t>(n));
  };
  for (int turn = 0; turn < 60; ++turn) {
    SchedulerLimits limits;
    limits.max_sequences = 1 + below(8);
    limits.prefill_rows = 1 + below(40);
    limits.max_rows = 1 + below(60);
    limits.max_outputs = 1 + below(8);
    limits.max_model_len = 20 + below(200);
    limits.kv_blocks = (limits.max_model_len + 15) / 16 + below(20);
    Scheduler scheduler(limits);
    SequenceTable table(
        {limits.max_rows, limits.max_outputs, limits.max_model_len, limits.kv_blocks}, 100,
        {0, 100});
    std::map<uint64_t, int64_t> left;  // tokens still to sample, by request
    std::map<uint64_t, int64_t> idle;  // steps since the last row
    uint64_t next_id = 1;
    int64_t arrivals = 30;
    StepPlan plan;
    while (arrivals > 0 || !left.empty()) {
      if (arrivals > 0 && below(3) == 0) {
        const int64_t prompt = 1 + below(limits.max_model_len - 1);
        const int64_t max_tokens = 1 + below(limits.max_model_len - prompt);
        ASSERT_TRUE(scheduler.Admissible(prompt, max_tokens).ok());
        left[next_id] = max_tokens;
        scheduler.Add(Ask(next_id++, prompt, max_tokens));
        --arrivals;
      }
      if (!left.empty() && below(20) == 0) {
        const uint64_t id =
            std::next(left.begin(), below(static_cast<int64_t>(left.size())))->first;
        scheduler.Remove(id);
        left.erase(id);
      }
      if (below(20) == 0) {
        // A step without rows may stand anywhere, and says what has ended as any other does.
        scheduler.NextEmpty(&plan);
        ASSERT_EQ(plan.rows(), 0);
      } else if (!scheduler.Next(&plan)) {
        continue;
      }
      const Status applied = table.Apply(plan);
      ASSERT_TRUE(applied.ok()) << applied;
      ASSERT_LE(plan.rows(), limits.max_rows);
      int64_t prompt_rows = 0;
      for (const RowSpan& span : plan.spans) {
        if (span.count > 1) prompt_rows += span.count;
      }
      ASSERT_LE(prompt_rows, limits.prefill_rows);
      for (const OutputRow& row : table.outputs()) {
        const std::optional<uint64_t> id = scheduler.RequestAt(row.slot);
        ASSERT_TRUE(id.has_value());
        scheduler.Append(row.slot);
        table.Append(row.slot, 1);
        if (--left[*id] == 0) {
          left.erase(*id);
          scheduler.Remove(*id);
        }
      }
    }
    if (scheduler.Next(&plan)) FAIL() << "work is left";
  }
}

TEST(Scheduler, TheSameCallsGiveTheSamePlans) {
  const auto run = [] {
    Scheduler scheduler(Limits());
    std::vector<std::byte> all;
    StepPlan plan;
    for (uint64_t id = 1; id <= 9; ++id) {
      scheduler.Add(Ask(id, static_cast<int64_t>(id * 13), 9));
      if (id % 4 == 0) scheduler.Remove(id - 2);
      if (!Step(&scheduler, &plan)) continue;
      std::vector<std::byte> bytes;
      EncodePlan(plan, &bytes);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  };
  EXPECT_EQ(run(), run());
}

}  // namespace
}  // namespace lockstep
