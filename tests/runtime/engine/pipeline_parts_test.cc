// The parts of a pipeline that need no ranks: how a step is cut, and what travels.
#include <gtest/gtest.h>

#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "runtime/engine/pipeline.h"
#include "runtime/engine/stage_message.h"

namespace lockstep {
namespace {

// So many rows of each sequence.
Batch BatchOf(const std::vector<int>& rows) {
  Batch batch;
  batch.block_tables.resize(rows.size());
  for (size_t sequence = 0; sequence < rows.size(); ++sequence) {
    for (int i = 0; i < rows[sequence]; ++i) {
      batch.tokens.push_back(i);
      batch.positions.push_back(i);
      batch.sequences.push_back(static_cast<int32_t>(sequence));
    }
  }
  return batch;
}

std::vector<int64_t> SizesOf(const std::vector<int>& rows, int stages, int64_t chunk = 4,
                             int64_t most = 8) {
  std::vector<int64_t> sizes;
  int64_t next = 0;
  for (const Range& range : SplitRows(BatchOf(rows), stages, chunk, most)) {
    EXPECT_EQ(range.begin, next);
    next = range.end;
    sizes.push_back(range.size());
  }
  EXPECT_EQ(next, std::accumulate(rows.begin(), rows.end(), 0));
  return sizes;
}

using Sizes = std::vector<int64_t>;

TEST(SplitRows, GivesEveryStageADecode) {
  EXPECT_EQ(SizesOf({1}, 3), Sizes({1}));
  EXPECT_EQ(SizesOf({1, 1}, 3), Sizes({1, 1}));
  EXPECT_EQ(SizesOf({1, 1, 1, 1, 1}, 2), Sizes({2, 3}));
  EXPECT_EQ(SizesOf(std::vector<int>(20, 1), 2), Sizes({6, 7, 7}));  // no more than fit
}

TEST(SplitRows, CutsPromptsByChunksBesideDecodes) {
  EXPECT_EQ(SizesOf({4}, 2), Sizes({4}));
  EXPECT_EQ(SizesOf({16}, 2), Sizes({4, 4, 4, 4}));
  EXPECT_EQ(SizesOf({1, 1, 9}, 2), Sizes({6, 4, 1}));
  EXPECT_EQ(SizesOf({3, 3, 3}, 2), Sizes({4, 4, 1}));              // several prompts alike
  EXPECT_EQ(SizesOf({2, 1, 1, 1, 1, 1, 1, 1}, 2), Sizes({8, 1}));  // never more than fit
}

TEST(SplitRows, AnEmptyStepIsOnePart) { EXPECT_EQ(SizesOf({}, 3), Sizes({0})); }

StageHeader Rows() { return {StageKind::kRows, 7, 2, 3, 96}; }

TEST(StageMessage, HeadersComeBackAndOthersAreRefused) {
  const auto bytes = EncodeStageHeader(Rows());
  const StageHeader back = DecodeStageHeader(bytes).value();
  EXPECT_TRUE(CheckStageHeader(back, Rows(), "rank 1").ok());
  EXPECT_FALSE(DecodeStageHeader(std::span(bytes).first(31)).ok());
  auto foreign = bytes;
  foreign[0] ^= std::byte{1};
  EXPECT_FALSE(DecodeStageHeader(foreign).ok());
}

TEST(StageMessage, WhateverIsNotDueNamesTheRank) {
  for (int field = 0; field < 5; ++field) {
    StageHeader got = Rows();
    if (field == 0) got.kind = StageKind::kResult;
    if (field == 1) ++got.step;
    if (field == 2) --got.part;
    if (field == 3) ++got.rows;
    if (field == 4) got.bytes -= 4;
    const Status refused = CheckStageHeader(got, Rows(), "rank 1 (node, pid 5)");
    EXPECT_EQ(KindOf(refused), ErrorKind::kPeerLost) << field;
    EXPECT_EQ(MessageOf(refused).rfind("rank 1 (node, pid 5) sent ", 0), 0u) << refused;
  }
  // Of an outcome only the most is known.
  StageHeader outcome = {StageKind::kResult, 7, 0, 3, 96};
  StageHeader shorter = outcome;
  shorter.bytes = 5;
  EXPECT_TRUE(CheckStageHeader(shorter, outcome, "").ok());
  shorter.bytes = 97;
  EXPECT_FALSE(CheckStageHeader(shorter, outcome, "").ok());
}

StepOutcome Found() {
  StepOutcome outcome;
  outcome.slots = {3, 0};
  outcome.tokens = {{5, -0.5, {{5, -0.5}, {9, -1.25}}}, {99, 0, {}}};
  outcome.too_slow = {0};
  outcome.raw_rows = 1;
  for (int i = 0; i < 100; ++i) outcome.raw_logits.push_back(static_cast<float>(i) / 8);
  outcome.raw_hidden = {{1, 2, 3, 4}, {5, 6, 7, 8}};
  return outcome;
}

OutcomeShape Shape() {
  return {.slots = {3, 0}, .vocab_size = 100, .raw_rows = 1, .hidden_ranks = 2, .hidden_size = 4};
}

TEST(StageMessage, OutcomesComeBackWhole) {
  const StepOutcome sent = Found();
  const std::vector<std::byte> bytes = EncodeOutcome(sent);
  EXPECT_LE(bytes.size(), Shape().most_bytes());
  const StepOutcome back = DecodeOutcome(bytes, Shape()).value();
  EXPECT_EQ(back.slots, sent.slots);
  ASSERT_EQ(back.tokens.size(), 2u);
  EXPECT_EQ(back.tokens[0].id, 5);
  EXPECT_EQ(back.tokens[0].logprob, -0.5);
  EXPECT_EQ(back.tokens[0].best, sent.tokens[0].best);
  EXPECT_EQ(back.tokens[1].id, 99);
  EXPECT_EQ(back.too_slow, sent.too_slow);
  EXPECT_EQ(back.raw_rows, 1);
  EXPECT_EQ(back.raw_logits, sent.raw_logits);
  EXPECT_EQ(back.raw_hidden, sent.raw_hidden);
}

TEST(StageMessage, OutcomesThatWereNotAskedForAreRefused) {
  const auto refused = [](const StepOutcome& outcome, const OutcomeShape& shape) {
    return !DecodeOutcome(EncodeOutcome(outcome), shape).ok();
  };
  StepOutcome other = Found();
  other.tokens[1].id = 100;  // beyond the vocabulary
  EXPECT_TRUE(refused(other, Shape()));
  other.tokens[1].id = -1;
  EXPECT_TRUE(refused(other, Shape()));
  other = Found();
  other.tokens[0].best[1].id = 100;
  EXPECT_TRUE(refused(other, Shape()));
  other = Found();
  other.slots[1] = 1;
  EXPECT_TRUE(refused(other, Shape()));
  other = Found();
  other.too_slow = {7};
  EXPECT_TRUE(refused(other, Shape()));
  other = Found();
  other.raw_logits.pop_back();
  EXPECT_TRUE(refused(other, Shape()));
  other = Found();
  other.raw_hidden[1].push_back(1);
  EXPECT_TRUE(refused(other, Shape()));
  other.raw_hidden.pop_back();
  EXPECT_TRUE(refused(other, Shape()));
  std::vector<std::byte> bytes = EncodeOutcome(Found());
  for (size_t size = 0; size < bytes.size(); size += 3)
    EXPECT_FALSE(DecodeOutcome(std::span(bytes).first(size), Shape()).ok()) << size;
  bytes.push_back({});
  EXPECT_FALSE(DecodeOutcome(bytes, Shape()).ok());
}

// The most that may come fits what has the most to say.
TEST(StageMessage, TheBoundOfAnOutcomeHoldsTheLargest) {
  OutcomeShape shape{.slots = {0, 1, 2}, .vocab_size = 50};
  StepOutcome outcome;
  outcome.slots = outcome.too_slow = shape.slots;
  outcome.tokens.assign(3, {1, 0, std::vector<TokenLogprob>(20)});
  EXPECT_LE(EncodeOutcome(outcome).size(), shape.most_bytes());
}

}  // namespace
}  // namespace lockstep
