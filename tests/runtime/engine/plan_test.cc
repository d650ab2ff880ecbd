#include "runtime/engine/plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "runtime/engine/sequence_table.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

StepPlan FullPlan() {
  StepPlan plan;
  plan.step = 7;
  plan.sampled = {17, 4, 4};
  plan.released = {3, 1};
  NewSequence start;
  start.slot = 3;
  start.tokens = {5, 6, 7};
  start.sampled = 1;
  start.token_set = {90, {4, 8}};
  start.params.temperature = 0.5;
  start.params.top_k = 9;
  start.params.top_p = 0.9;
  start.params.min_p = 0.1;
  start.params.repetition_penalty = 1.1;
  start.params.presence_penalty = -1;
  start.params.frequency_penalty = 2;
  start.params.logit_bias = {{1, 2.5f}, {3, -4.0f}};
  start.params.seed = 123456789012345;
  start.params.logprobs = 5;
  start.params.thinking = {100, 4, 6};
  start.shared = {7, 1};
  start.grammar = "{\"start\": \"content\"}";
  plan.started = {start};
  plan.growth = {{3, {0, 2}}};
  plan.spans = {{3, 0, 3, SpanOutput::kSample},
                {2, 40, 1, SpanOutput::kSample},
                {0, 16, 8, SpanOutput::kNone}};
  return plan;
}

std::vector<std::byte> Encoded(const StepPlan& plan) {
  std::vector<std::byte> bytes;
  EncodePlan(plan, &bytes);
  return bytes;
}

TEST(StepPlan, IsADecodeStepWhenEveryRowGivesAToken) {
  StepPlan plan;
  EXPECT_FALSE(plan.IsDecode());
  const RowSpan token = {.slot = 0, .begin = 9, .count = 1, .output = SpanOutput::kSample};
  plan.spans = {token, token};
  EXPECT_TRUE(plan.IsDecode());
  EXPECT_EQ(plan.prompt_rows(), 0);
  plan.spans[1].count = 2;
  EXPECT_FALSE(plan.IsDecode());
  plan.spans[1] = token;
  plan.spans[1].output = SpanOutput::kNone;
  EXPECT_FALSE(plan.IsDecode());
}

TEST(Plan, ComesBackAsItWas) {
  const StatusOr<StepPlan> plan = DecodePlan(Encoded(FullPlan()));
  ASSERT_TRUE(plan.ok()) << plan.status();
  const StepPlan expected = FullPlan();
  EXPECT_EQ(plan->step, 7u);
  EXPECT_EQ(plan->sampled, expected.sampled);
  EXPECT_EQ(plan->released, expected.released);
  ASSERT_EQ(plan->started.size(), 1u);
  EXPECT_EQ(plan->started[0].slot, 3);
  EXPECT_EQ(plan->started[0].tokens, expected.started[0].tokens);
  EXPECT_EQ(plan->started[0].sampled, 1);
  EXPECT_EQ(plan->started[0].token_set, expected.started[0].token_set);
  EXPECT_EQ(plan->started[0].params, expected.started[0].params);
  EXPECT_EQ(plan->started[0].shared, expected.started[0].shared);
  EXPECT_EQ(plan->started[0].grammar, expected.started[0].grammar);
  ASSERT_EQ(plan->growth.size(), 1u);
  EXPECT_EQ(plan->growth[0].blocks, expected.growth[0].blocks);
  ASSERT_EQ(plan->spans.size(), 3u);
  EXPECT_EQ(plan->spans[2].begin, 16);
  EXPECT_EQ(plan->spans[2].output, SpanOutput::kNone);
  EXPECT_EQ(plan->rows(), 12);
}

StepPlan SavePlan() {
  StepPlan plan;
  plan.kind = PlanKind::kSave;
  plan.released = {2};
  plan.kept.save = 0xfedcba9876543210;
  BlockTokens tokens{};
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(3 * i);
  plan.kept.chains = {{-1, tokens}, {0, tokens}};
  plan.kept.blocks = {5, 1};
  return plan;
}

TEST(Plan, ASaveComesBackAsItWas) {
  const StepPlan expected = SavePlan();
  std::vector<std::byte> bytes = Encoded(expected);
  const StatusOr<StepPlan> plan = DecodePlan(bytes);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_EQ(plan->kind, PlanKind::kSave);
  EXPECT_EQ(plan->released, expected.released);
  EXPECT_EQ(plan->kept.save, expected.kept.save);
  EXPECT_EQ(plan->kept.chains, expected.kept.chains);
  EXPECT_EQ(plan->kept.blocks, expected.kept.blocks);
  for (size_t length = 0; length < bytes.size(); ++length)
    EXPECT_FALSE(DecodePlan(std::span(bytes).first(length)).ok()) << length;
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(DecodePlan(bytes).ok());
  // A step has nothing of it, not even the lengths.
  StepPlan step = expected;
  step.kind = PlanKind::kStep;
  EXPECT_LT(Encoded(step).size() + 2 * (4 + 4 + 64), bytes.size());
}

TEST(Plan, ASaveWhoseListsDoNotMatchIsRefused) {
  for (const int what : {0, 1}) {
    StepPlan plan = SavePlan();
    what == 0 ? plan.kept.blocks.pop_back() : plan.kept.chains.pop_back();
    EXPECT_FALSE(DecodePlan(Encoded(plan)).ok());
  }
  // One place less among those before: its list stands behind the ids, before 4 + 128 bytes.
  std::vector<std::byte> bytes = Encoded(SavePlan());
  const auto list = bytes.end() - (4 + 128) - (4 + 8);
  ASSERT_EQ(*list, std::byte{2});
  *list = std::byte{1};
  bytes.erase(list + 4, list + 8);
  EXPECT_FALSE(DecodePlan(bytes).ok());
}

TEST(Plan, ADecodeRowTakesThirteenBytes) {
  StepPlan one, two;
  one.spans = {{0, 1, 1, SpanOutput::kSample}};
  two.spans = {one.spans[0], {1, 1, 1, SpanOutput::kSample}};
  EXPECT_EQ(Encoded(two).size() - Encoded(one).size(), 13u);
}

TEST(Plan, EveryPrefixAndEveryExtensionIsRefused) {
  std::vector<std::byte> bytes = Encoded(FullPlan());
  for (size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(DecodePlan(std::span(bytes).first(length)).ok()) << length;
  }
  bytes.push_back(std::byte{0});
  EXPECT_FALSE(DecodePlan(bytes).ok());
}

TEST(Plan, FlippedBytesNeverCrashTheReceiver) {
  std::mt19937 random(lockstep::testing::TestSeed());
  const std::vector<std::byte> good = Encoded(FullPlan());
  for (int turn = 0; turn < 20'000; ++turn) {
    std::vector<std::byte> bytes = good;
    for (size_t flips = 1 + random() % 3; flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    const StatusOr<StepPlan> plan = DecodePlan(bytes);
    if (!plan.ok()) continue;
    SequenceTable table({16, 16, 256, 8}, 100, {0, 50});
    (void)table.Apply(*plan);
  }
}

// A table with one sequence of 20 tokens in slot 0 (blocks 0 and 1), all but the last 4 computed.
struct Prepared {
  SequenceTable table{
      ModelLimits{.max_rows = 16, .max_outputs = 4, .max_model_len = 64, .kv_blocks = 8},
      100,
      {0, 50}};
  Prepared() {
    StepPlan plan;
    NewSequence start;
    start.slot = 0;
    start.tokens.assign(20, 1);
    plan.started = {start};
    plan.growth = {{0, {0, 1}}};
    plan.spans = {{0, 0, 16, SpanOutput::kNone}};
    const Status status = table.Apply(plan);
    EXPECT_TRUE(status.ok()) << status;
  }
};

TEST(SequenceTable, TakesAGoodPlanAndBuildsItsBatch) {
  Prepared prepared;
  StepPlan plan;
  plan.spans = {{0, 16, 4, SpanOutput::kSample}};
  ASSERT_TRUE(prepared.table.Apply(plan).ok());
  const Batch& batch = prepared.table.batch();
  EXPECT_EQ(batch.positions, (std::vector<int32_t>{16, 17, 18, 19}));
  EXPECT_EQ(batch.output_rows, (std::vector<int32_t>{3}));
  EXPECT_EQ(batch.block_tables, (std::vector<std::vector<int32_t>>{{0, 1}}));
  ASSERT_EQ(prepared.table.outputs().size(), 1u);
  EXPECT_EQ(prepared.table.outputs()[0].position, 19);
}

TEST(SequenceTable, RefusesPlansThatDoNotFitItsState) {
  struct Bad {
    const char* what;
    StepPlan plan;
  };
  NewSequence taken, far, empty, token, longer;
  taken.tokens = far.tokens = {1};
  far.slot = 1'000'000;
  empty.slot = 1;
  token.slot = longer.slot = 1;
  token.tokens = {100};
  longer.tokens.assign(65, 1);
  const std::vector<Bad> cases = {
      {"release of an empty slot", {.released = {5}}},
      {"negative slot", {.released = {-1}}},
      {"slot taken", {.started = {taken}}},
      {"slot out of range", {.started = {far}}},
      {"empty sequence", {.started = {empty}}},
      {"token out of range", {.started = {token}}},
      {"sequence too long", {.started = {longer}}},
      {"block in use", {.growth = {{0, {1}}}}},
      {"block not in the pool", {.growth = {{0, {8}}}}},
      {"negative block", {.growth = {{0, {-1}}}}},
      {"blocks for an empty slot", {.growth = {{1, {3}}}}},
      {"rows of an empty slot", {.spans = {{1, 0, 1, SpanOutput::kNone}}}},
      {"gap", {.spans = {{0, 17, 1, SpanOutput::kNone}}}},
      {"computed again", {.spans = {{0, 0, 1, SpanOutput::kNone}}}},
      {"beyond the tokens", {.spans = {{0, 16, 5, SpanOutput::kSample}}}},
      {"sample in the middle", {.spans = {{0, 16, 2, SpanOutput::kSample}}}},
      {"slot twice", {.spans = {{0, 16, 1, SpanOutput::kNone}, {0, 17, 1, SpanOutput::kNone}}}},
      {"overflowing count", {.spans = {{0, 16, INT32_MAX, SpanOutput::kNone}}}},
  };
  for (const Bad& bad : cases) {
    Prepared prepared;
    const Status status = prepared.table.Apply(bad.plan);
    EXPECT_FALSE(status.ok()) << bad.what;
    EXPECT_EQ(KindOf(status), ErrorKind::kInternal);
  }
}

TEST(SequenceTable, BlocksAreSharedOnlyWithWhoBeginsAlike) {
  // Slot 0 has computed block 0, and 4 positions of block 1 to come.
  const auto start = [](Prepared& prepared, std::vector<int32_t> tokens,
                        std::vector<int32_t> shared) {
    NewSequence sequence;
    sequence.slot = 1;
    sequence.tokens = std::move(tokens);
    sequence.token_set.limit = 100;
    sequence.shared = std::move(shared);
    StepPlan plan;
    plan.started = {sequence};
    return prepared.table.Apply(plan);
  };
  const auto beginning = [](const Prepared& prepared, int64_t count) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i) tokens.push_back(prepared.table.TokenAt(0, i));
    return tokens;
  };
  {
    Prepared prepared;
    ASSERT_TRUE(start(prepared, beginning(prepared, 17), {0}).ok());
    StepPlan plan;
    plan.growth = {{1, {5}}};
    plan.spans = {{1, 16, 1, SpanOutput::kSample}};
    ASSERT_TRUE(prepared.table.Apply(plan).ok());
    EXPECT_EQ(prepared.table.batch().block_tables, (std::vector<std::vector<int32_t>>{{0, 5}}));
    // The block stays its other holder's, and is nobody's to write to.
    plan = {};
    plan.released = {0};
    plan.growth = {{1, {0}}};
    EXPECT_FALSE(prepared.table.Apply(plan).ok());
  }
  Prepared other, whole, half, nowhere, stale;
  std::vector<int32_t> tokens = beginning(other, 17);
  tokens[3] ^= 1;
  EXPECT_THAT(MessageOf(start(other, tokens, {0})), ::testing::HasSubstr("holds other tokens"));
  EXPECT_FALSE(start(whole, beginning(whole, 16), {0}).ok()) << "nothing is left to compute";
  EXPECT_FALSE(start(half, beginning(half, 20), {1}).ok());
  EXPECT_FALSE(start(nowhere, beginning(nowhere, 17), {8}).ok());
  // Given to another sequence, it holds nothing until that one has computed it.
  tokens = beginning(stale, 17);
  StepPlan plan;
  NewSequence taker;
  taker.slot = 2;
  taker.tokens.assign(20, 9);
  plan.released = {0};
  plan.started = {taker};
  plan.growth = {{2, {0}}};
  ASSERT_TRUE(stale.table.Apply(plan).ok());
  EXPECT_FALSE(start(stale, tokens, {0}).ok());
}

// The blocks of the list as `table` has them.
KeptBlocks KeptOf(const Prepared& prepared) {
  KeptBlocks kept;
  kept.blocks = {0};
  kept.chains.resize(1);
  for (size_t i = 0; i < 16; ++i)
    kept.chains[0].tokens[i] = prepared.table.TokenAt(0, static_cast<int64_t>(i));
  return kept;
}

TEST(SequenceTable, OnlyWhatBlocksHoldIsKept) {
  // Slot 0 has computed block 0, and not all of block 1.
  const Prepared prepared;
  ASSERT_TRUE(prepared.table.CheckKept(KeptOf(prepared)).ok());
  const std::vector<std::function<void(KeptBlocks*)>> slips = {
      [](KeptBlocks* kept) { kept->chains[0].tokens[3] ^= 1; },
      [](KeptBlocks* kept) { kept->blocks[0] = 1; },
      [](KeptBlocks* kept) { kept->blocks[0] = 8; },
      [](KeptBlocks* kept) { kept->blocks[0] = -1; },
      [](KeptBlocks* kept) { kept->chains[0].before = 0; },
      [](KeptBlocks* kept) { kept->chains[0].before = -2; },
      [](KeptBlocks* kept) {  // behind itself it would be another block
        kept->chains.push_back({0, kept->chains[0].tokens});
        kept->blocks.push_back(0);
      }};
  for (size_t i = 0; i < slips.size(); ++i) {
    KeptBlocks kept = KeptOf(prepared);
    slips[i](&kept);
    EXPECT_FALSE(prepared.table.CheckKept(kept).ok()) << i;
  }
}

// Whether a prompt of two such blocks, with another token at `changed` (-1: with none), shares
// them.
bool SharesRestored(const std::vector<ChainedBlock>& list, int32_t changed) {
  SequenceTable table({16, 4, 64, 8}, 100, {0, 50});
  table.Restore(list);
  NewSequence sequence;
  for (const ChainedBlock& block : list)
    sequence.tokens.insert(sequence.tokens.end(), block.tokens.begin(), block.tokens.end());
  sequence.tokens.push_back(1);
  if (changed >= 0) sequence.tokens[changed] ^= 1;
  sequence.token_set.limit = 100;
  sequence.shared = {0, 1};
  StepPlan plan;
  plan.started = {sequence};
  return table.Apply(plan).ok();
}

TEST(SequenceTable, RestoredBlocksAreSharedByWhoBeginsSo) {
  std::vector<ChainedBlock> list = KeptOf(Prepared()).chains;
  list.push_back({0, list[0].tokens});
  EXPECT_TRUE(SharesRestored(list, -1));
  EXPECT_FALSE(SharesRestored(list, 0));
  EXPECT_FALSE(SharesRestored(list, 31));
}

TEST(SequenceTable, RefusesMoreRowsOrOutputsThanTheLimit) {
  Prepared prepared;
  StepPlan plan;
  NewSequence start;
  start.slot = 1;
  start.tokens.assign(5, 1);
  plan.started = {start};
  plan.growth = {{1, {2}}};
  plan.spans = {{1, 0, 5, SpanOutput::kRaw}};
  EXPECT_FALSE(prepared.table.Apply(plan).ok()) << "5 outputs, the limit is 4";
}

TEST(SequenceTable, RefusesRowsBeyondTheKvBlocks) {
  SequenceTable table({16, 4, 64, 8}, 100, {0, 50});
  StepPlan plan;
  NewSequence start;
  start.tokens = {1};
  plan.started = {start};
  plan.spans = {{0, 0, 1, SpanOutput::kSample}};
  EXPECT_FALSE(table.Apply(plan).ok());
}

// A table in which two sequences of 4 and 20 tokens, all blocks theirs, have their first answer.
SequenceTable TwoSequences() {
  SequenceTable table(
      ModelLimits{.max_rows = 32, .max_outputs = 4, .max_model_len = 64, .kv_blocks = 8}, 100,
      {0, 50});
  StepPlan plan;
  plan.started = {{0, std::vector<int32_t>(3, 1), {}, {}},
                  {1, std::vector<int32_t>(19, 2), {}, {}}};
  plan.growth = {{0, {0, 2, 4, 6}}, {1, {1, 3, 5, 7}}};
  plan.spans = {{0, 0, 3, SpanOutput::kSample}, {1, 0, 19, SpanOutput::kSample}};
  const Status status = table.Apply(plan);
  EXPECT_TRUE(status.ok()) << status;
  for (const int32_t slot : {0, 1}) table.Append(slot, 7);
  return table;
}

StepPlan Computing(int32_t slot, int32_t begin, int32_t count) {
  StepPlan plan;
  plan.spans = {{slot, begin, count, SpanOutput::kSample}};
  return plan;
}

// Both have the same tokens, of the first of these lengths and no more, and compute the next rows
// alike.
void ExpectSame(SequenceTable* one, SequenceTable* other, const std::vector<int32_t>& lengths) {
  StepPlan plan;
  for (const int32_t slot : {0, 1}) {
    for (int32_t at = 0; at < lengths[slot] + 8; ++at) {
      ASSERT_EQ(one->TokenAt(slot, at), other->TokenAt(slot, at)) << slot << " " << at;
      ASSERT_EQ(one->TokenAt(slot, at) < 0, at >= lengths[slot]) << slot << " " << at;
    }
    plan.spans.push_back({slot, lengths[slot] - 1, 1, SpanOutput::kSample});
  }
  for (SequenceTable* table : {one, other}) {
    const Status status = table->Apply(plan);
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(one->batch().tokens, other->batch().tokens);
  EXPECT_EQ(one->batch().positions, other->batch().positions);
  EXPECT_EQ(one->batch().block_tables, other->batch().block_tables);
}

// One table takes a token at a time. The other one computes drafts with it, some of them wrong, and
// takes those back.
TEST(SequenceTable, DraftsThatWereTakenBackLeaveNothing) {
  std::mt19937 random(lockstep::testing::TestSeed());
  const auto below = [&](int32_t n) {
    return static_cast<int32_t>(random() % static_cast<uint32_t>(n));
  };
  for (int turn = 0; turn < 50; ++turn) {
    SequenceTable straight = TwoSequences(), drafting = TwoSequences();
    std::vector<int32_t> lengths = {4, 20};
    while (std::max(lengths[0], lengths[1]) < 56) {
      const int32_t slot = below(2), length = lengths[slot], drafts = below(5);
      const int32_t accepted = below(drafts + 1);
      std::vector<int32_t> next;  // what was accepted, and the token behind it
      for (int32_t i = 0; i <= accepted; ++i) next.push_back(below(100));
      for (int32_t i = 0; i < drafts; ++i)
        drafting.Append(slot, i < accepted ? next[i] : below(100));
      ASSERT_TRUE(drafting.Apply(Computing(slot, length - 1, 1 + drafts)).ok());
      drafting.Truncate(slot, length + accepted);
      drafting.Append(slot, next.back());
      for (const int32_t token : next) {
        ASSERT_TRUE(straight.Apply(Computing(slot, lengths[slot] - 1, 1)).ok());
        straight.Append(slot, token);
        ++lengths[slot];
      }
      ASSERT_NO_FATAL_FAILURE(ExpectSame(&straight, &drafting, lengths)) << "turn " << turn;
      for (const int32_t other : {0, 1}) {
        const int32_t token = below(100);
        straight.Append(other, token);
        drafting.Append(other, token);
        ++lengths[other];
      }
    }
  }
}

// Rank 0 will not give them a second time.
TEST(SequenceTable, ATruncatedSequenceKeepsItsBlocks) {
  Prepared prepared;
  ASSERT_TRUE(prepared.table.Apply(Computing(0, 16, 4)).ok());
  for (int32_t token = 0; token < 13; ++token) prepared.table.Append(0, token);
  StepPlan plan = Computing(0, 20, 13);
  plan.growth = {{0, {2}}};
  ASSERT_TRUE(prepared.table.Apply(plan).ok());
  prepared.table.Truncate(0, 21);
  prepared.table.Append(0, 5);
  ASSERT_TRUE(prepared.table.Apply(Computing(0, 21, 1)).ok());
  EXPECT_EQ(prepared.table.batch().block_tables, (std::vector<std::vector<int32_t>>{{0, 1, 2}}));
  plan.spans.clear();
  EXPECT_FALSE(prepared.table.Apply(plan).ok()) << "block 2 was given to another";
}

TEST(SequenceTableDeathTest, MoreThanThereIsCannotStay) {
  Prepared prepared;
  EXPECT_DEATH(prepared.table.Truncate(0, 21), "length <=");
  EXPECT_DEATH(prepared.table.Truncate(0, 0), "length >= 1");
  EXPECT_DEATH(prepared.table.Truncate(1, 1), "sequence != nullptr");
}

}  // namespace
}  // namespace lockstep
