#include "runtime/engine/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "runtime/engine/sequence_table.h"
#include "tests/runtime/engine/small_limits.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using testing::SmallLimits;

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
    if (span.output == SpanOutput::kSample) scheduler->Append(span.slot, 1);
  }
  return true;
}

TEST(Scheduler, NothingToDoGivesNoPlan) {
  Scheduler scheduler(SmallLimits());
  StepPlan plan;
  EXPECT_FALSE(scheduler.Next(&plan));
}

TEST(Scheduler, CutsPromptsIntoChunks) {
  Scheduler scheduler(SmallLimits());
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
  Scheduler scheduler(SmallLimits());
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
  Scheduler scheduler(SmallLimits());
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

TEST(Scheduler, PromptsMayHaveLongerStepsWhereNobodyDecodes) {
  SchedulerLimits limits = SmallLimits();
  limits.max_rows = 100;
  limits.prefill_rows_alone = 80;
  Scheduler scheduler(limits);
  scheduler.Add(Ask(1, 200, 10));
  StepPlan plan;
  ASSERT_TRUE(scheduler.Next(&plan, 5));
  EXPECT_EQ(plan.prompt_rows(), 80);
  scheduler.Add(Ask(2, 1, 50));
  ASSERT_TRUE(Step(&scheduler, &plan));  // it enters, and decodes from now on
  EXPECT_EQ(plan.prompt_rows(), 32);
  ASSERT_TRUE(scheduler.Next(&plan, 5));
  EXPECT_EQ(plan.prompt_rows(), 5);
}

TEST(Scheduler, ARequestWaitsUntilItsBlocksAreFree) {
  SchedulerLimits limits = SmallLimits();
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
  Scheduler scheduler(SmallLimits());
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
  const Scheduler scheduler(SmallLimits());
  EXPECT_TRUE(scheduler.Admissible(255, 1).ok());
  for (const auto& [prompt, max_tokens] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 1}, {256, 1}, {1'000'000, 1}, {255, 2}, {10, 0}, {10, -5}, {10, 1'000'000}}) {
    const Status status = scheduler.Admissible(prompt, max_tokens);
    EXPECT_FALSE(status.ok()) << prompt << " + " << max_tokens;
    EXPECT_EQ(KindOf(status), ErrorKind::kRequest);
  }
  SchedulerLimits small = SmallLimits();
  small.kv_blocks = 3;
  EXPECT_FALSE(Scheduler(small).Admissible(40, 20).ok());
}

TEST(Scheduler, APlanCarriesNoMorePromptsThanItMayWeigh) {
  SchedulerLimits limits = SmallLimits();
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
  Scheduler scheduler(SmallLimits());
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
  SchedulerLimits limits = SmallLimits();
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

// What the KV pages of a rank hold, as tokens: every row must find its sequence's own tokens before
// it, whoever computed them.
class Pages {
 public:
  explicit Pages(int64_t blocks) : cells_(static_cast<size_t>(blocks * kBlockTokens), -1) {}

  // How many rows found something else.
  int64_t Compute(const Batch& batch, const std::map<int32_t, std::vector<int32_t>>& histories,
                  const std::vector<int32_t>& slots) {
    const auto cell = [&](int64_t row, int32_t position) -> int32_t& {
      const std::vector<int32_t>& blocks = batch.block_tables[batch.sequences[row]];
      return cells_[blocks[position / kBlockTokens] * kBlockTokens + position % kBlockTokens];
    };
    for (int64_t row = 0; row < batch.rows(); ++row)
      cell(row, batch.positions[row]) = batch.tokens[row];
    int64_t wrong = 0;
    for (int64_t row = 0; row < batch.rows(); ++row) {
      const std::vector<int32_t>& history = histories.at(slots[batch.sequences[row]]);
      for (int32_t position = 0; position <= batch.positions[row]; ++position) {
        if (cell(row, position) != history[position]) {
          ++wrong;
          break;
        }
      }
    }
    return wrong;
  }

 private:
  std::vector<int32_t> cells_;
};

SchedulerLimits RandomLimits(const std::function<int64_t(int64_t)>& below) {
  SchedulerLimits limits;
  limits.max_sequences = 1 + below(8);
  limits.prefill_rows = 1 + below(40);
  limits.max_rows = 1 + below(60);
  limits.max_outputs = 1 + below(8);
  limits.max_model_len = 20 + below(200);
  limits.kv_blocks = (limits.max_model_len + 15) / 16 + below(20);
  limits.prefix_cache = below(4) != 0;
  return limits;
}

// Random arrivals, ends and cancellations, of prompts that begin alike; every plan is applied to a
// table that checks it as a worker does.
class Walk {
 public:
  explicit Walk(std::function<int64_t(int64_t)> below)
      : below_(std::move(below)), limits_(RandomLimits(below_)), scheduler_(limits_) {}

  void Run() {
    for (int64_t arrivals = 30; arrivals > 0 || !left_.empty();) {
      if (arrivals > 0 && below_(3) == 0) {
        Arrive();
        --arrivals;
      }
      if (!left_.empty() && below_(20) == 0) CancelOne();
      if (below_(20) == 0) {
        // A step without rows may stand anywhere, and says what has ended as any other does.
        scheduler_.NextEmpty(&plan_);
        ASSERT_EQ(plan_.rows(), 0);
      } else if (!scheduler_.Next(&plan_)) {
        continue;
      }
      ASSERT_NO_FATAL_FAILURE(KeepsPriorities());
      ASSERT_NO_FATAL_FAILURE(Compute());
      ASSERT_GE(scheduler_.pool().available(), 0) << "more is promised than there is";
    }
    ASSERT_FALSE(scheduler_.Next(&plan_)) << "work is left";
    scheduler_.NextSave(&plan_);
    ASSERT_EQ(plan_.rows(), 0);
    ASSERT_TRUE(table_.Apply(plan_).ok());
    const Status kept = table_.CheckKept(plan_.kept);
    ASSERT_TRUE(kept.ok()) << kept;
    kept_ = static_cast<int64_t>(plan_.kept.blocks.size());
    ASSERT_EQ(scheduler_.pool().used(), 0);
    ASSERT_EQ(scheduler_.pool().available(), limits_.kv_blocks);
  }
  int64_t shared() const { return shared_; }
  int64_t kept() const { return kept_; }
  int64_t preemptions() const { return scheduler_.preemptions(); }
  const SchedulerLimits& limits() const { return limits_; }

 private:
  void Arrive() {
    const int64_t prompt = 1 + below_(limits_.max_model_len - 1);
    const int64_t max_tokens = 1 + below_(limits_.max_model_len - prompt);
    ASSERT_TRUE(scheduler_.Admissible(prompt, max_tokens).ok());
    left_[next_id_] = max_tokens;
    blocks_[next_id_] = (prompt + max_tokens - 1 + kBlockTokens - 1) / kBlockTokens;
    ScheduledRequest request = Ask(next_id_++, prompt, max_tokens);
    // One of two beginnings, and then something of its own.
    std::fill(request.tokens.begin(), request.tokens.end(), 50 + static_cast<int32_t>(below_(2)));
    for (int64_t i = below_(prompt + 1); i < prompt; ++i)
      request.tokens[i] = static_cast<int32_t>(below_(100));
    request.client = std::string(1, static_cast<char>('a' + below_(3)));
    request.weight = static_cast<double>(1 + below_(3));
    request.priority = static_cast<int32_t>(below_(3)) - 1;
    priorities_[request.id] = request.priority;
    scheduler_.Add(std::move(request));
  }

  // Nobody waits for worse priorities than his own: who waits first would not fit even if nobody
  // but his own and better priorities ran.
  void KeepsPriorities() {
    for (const int32_t slot : plan_.released) {
      if (!scheduler_.RequestAt(slot)) running_.erase(slot);
    }
    for (const NewSequence& started : plan_.started)
      running_[started.slot] = *scheduler_.RequestAt(started.slot);
    std::map<int32_t, int64_t> waiting;  // the most blocks that one of the priority needs
    for (const auto& [id, tokens] : left_) {
      const bool runs = std::any_of(running_.begin(), running_.end(),
                                    [id = id](const auto& entry) { return entry.second == id; });
      if (!runs) waiting[priorities_[id]] = std::max(waiting[priorities_[id]], blocks_[id]);
    }
    if (waiting.empty()) return;
    const auto [best, needed] = *waiting.begin();
    for (const NewSequence& started : plan_.started)
      ASSERT_LE(priorities_[running_[started.slot]], best);
    if (plan_.rows() == 0) return;  // nobody was admitted
    int64_t held = 0, slots = 0;
    for (const auto& [slot, id] : running_) {
      if (priorities_[id] > best) continue;
      // Who computed what another one published before holds that beside its own.
      held += limits_.prefix_cache ? 2 * blocks_[id] : blocks_[id];
      ++slots;
    }
    const int64_t most = std::min({limits_.max_sequences, limits_.max_rows, limits_.max_outputs});
    ASSERT_TRUE(slots == most || held + needed > limits_.kv_blocks)
        << slots << " of " << most << " slots, " << held << " + " << needed << " blocks";
  }

  void CancelOne() {
    const uint64_t id = std::next(left_.begin(), below_(static_cast<int64_t>(left_.size())))->first;
    scheduler_.Remove(id);
    left_.erase(id);
  }

  void Compute() {
    const Status applied = table_.Apply(plan_);
    ASSERT_TRUE(applied.ok()) << applied;
    ASSERT_LE(plan_.rows(), limits_.max_rows);
    int64_t prompt_rows = 0;
    std::vector<int32_t> slots;
    for (const RowSpan& span : plan_.spans) {
      if (span.count > 1) prompt_rows += span.count;
      slots.push_back(span.slot);
    }
    ASSERT_LE(prompt_rows, limits_.prefill_rows);
    for (const NewSequence& started : plan_.started) {
      histories_[started.slot] = started.tokens;
      shared_ += static_cast<int64_t>(started.shared.size());
    }
    ASSERT_EQ(pages_.Compute(table_.batch(), histories_, slots), 0);
    for (const OutputRow& row : table_.outputs()) {
      const std::optional<uint64_t> id = scheduler_.RequestAt(row.slot);
      ASSERT_TRUE(id.has_value());
      const auto token = static_cast<int32_t>(below_(100));
      scheduler_.Append(row.slot, token);
      table_.Append(row.slot, token);
      histories_[row.slot].push_back(token);
      if (--left_[*id] > 0) continue;
      left_.erase(*id);
      scheduler_.Remove(*id);
    }
  }

  const std::function<int64_t(int64_t)> below_;
  const SchedulerLimits limits_;
  Scheduler scheduler_;
  SequenceTable table_{
      {limits_.max_rows, limits_.max_outputs, limits_.max_model_len, limits_.kv_blocks},
      100,
      {0, 100}};
  Pages pages_{limits_.kv_blocks};
  std::map<int32_t, std::vector<int32_t>> histories_;  // by slot
  std::map<uint64_t, int64_t> left_;                   // tokens still to sample, by request
  std::map<uint64_t, int64_t> blocks_;                 // for prompt and answer, by request
  std::map<uint64_t, int32_t> priorities_;
  std::map<int32_t, uint64_t> running_;  // by slot
  uint64_t next_id_ = 1;
  StepPlan plan_;
  int64_t shared_ = 0;
  int64_t kept_ = 0;  // blocks in the save at the end
};

TEST(Scheduler, PlansAlwaysFitTheWorkersStateAndEverythingEnds) {
  std::mt19937 random(lockstep::testing::TestSeed());
  int64_t shared = 0, preemptions = 0, kept = 0;
  for (int turn = 0; turn < 60; ++turn) {
    Walk walk([&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint64_t>(n)); });
    ASSERT_NO_FATAL_FAILURE(walk.Run());
    shared += walk.shared();
    preemptions += walk.preemptions();
    if (!walk.limits().prefix_cache) {
      ASSERT_EQ(walk.shared(), 0);
      ASSERT_EQ(walk.kept(), 0);
    }
    kept += walk.kept();
  }
  EXPECT_GT(kept, 100);
  EXPECT_GT(shared, 100);
  EXPECT_GT(preemptions, 50);
}

TEST(Scheduler, APromptBeginsBehindWhatIsThereOfIt) {
  Scheduler scheduler(SmallLimits());
  StepPlan plan;
  ScheduledRequest first = Ask(1, 40, 3);
  for (size_t i = 0; i < first.tokens.size(); ++i) first.tokens[i] = static_cast<int32_t>(i);
  const std::vector<int32_t> conversation = first.tokens;
  scheduler.Add(std::move(first));
  // 40 and two of its three tokens are computed: two full blocks.
  while (Step(&scheduler, &plan) && plan.rows() > 0) {
    if (!plan.started.empty()) {
      EXPECT_TRUE(plan.started[0].shared.empty());
    }
    if (plan.spans[0].begin == 41) break;
  }
  const std::vector<int32_t> blocks = {0, 1};
  scheduler.Remove(1);
  const auto begins_at = [&](uint64_t id, const std::vector<int32_t>& tokens) {
    ScheduledRequest request = Ask(id, 1, 5);
    request.tokens = tokens;
    scheduler.Add(std::move(request));
    EXPECT_TRUE(Step(&scheduler, &plan));
    EXPECT_EQ(plan.started.size(), 1u);
    EXPECT_EQ(plan.spans[0].begin,
              static_cast<int32_t>(plan.started[0].shared.size()) * kBlockTokens);
    const int32_t begin = plan.spans[0].begin;
    scheduler.Remove(id);
    return begin;
  };
  std::vector<int32_t> next = conversation;
  next.insert(next.end(), {1, 1, 7, 7, 7});  // the answer, and the next question
  EXPECT_EQ(begins_at(2, next), 32);
  EXPECT_EQ(plan.started[0].shared, blocks);
  EXPECT_EQ(begins_at(3, std::vector<int32_t>(conversation.begin(), conversation.begin() + 33)),
            32);
  // Of a prompt that is there as a whole the last token is computed, for its logits.
  EXPECT_EQ(begins_at(4, std::vector<int32_t>(conversation.begin(), conversation.begin() + 32)),
            16);
  next[0] = 99;
  EXPECT_EQ(begins_at(5, next), 0);
  next[0] = 0;
  next[20] = 99;
  EXPECT_EQ(begins_at(6, next), 16);
}

TEST(Scheduler, TheSameCallsGiveTheSamePlans) {
  const auto run = [] {
    Scheduler scheduler(SmallLimits());
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
