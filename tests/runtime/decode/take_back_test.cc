// A sampler that took drafts back against one that never had them.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "runtime/decode/sampler.h"
#include "tests/runtime/engine/thread_group.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

constexpr int32_t kVocab = 24;  // few, so that drafts meet the ids of prompt and output

class Random {
 public:
  int32_t Below(size_t n) { return static_cast<int32_t>(random_() % n); }
  double Pick(std::initializer_list<double> values) {
    return *(values.begin() + Below(values.size()));
  }
  std::vector<int32_t> Ids(int32_t count) {
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < count; ++i) ids.push_back(Below(kVocab));
    return ids;
  }
  std::vector<float> Logits(int64_t count) {
    std::vector<float> logits;
    for (int64_t i = 0; i < count; ++i) logits.push_back(normal_(random_));
    return logits;
  }
  SamplingParams Params() {
    SamplingParams params;
    params.temperature = Pick({0.0, 0.7, 1.0});
    params.top_k = Below(2) == 0 ? 0 : 5;
    params.top_p = Pick({1.0, 0.9});
    params.repetition_penalty = Pick({1.0, 1.3, 0.8});
    params.presence_penalty = Pick({0.0, 0.7, -0.4});
    params.frequency_penalty = Pick({0.0, 0.2});
    if (Below(2) == 0) params.logit_bias = {{Below(kVocab), 0.5f}};
    params.seed = random_();
    params.logprobs = Below(2) == 0 ? -1 : 3;
    if (Below(2) == 0) params.thinking = {Below(4), 3, 7};
    return params;
  }

 private:
  std::mt19937_64 random_{lockstep::testing::TestSeed()};
  std::normal_distribution<float> normal_{0, 3};
};

// All that a sampler makes of a row: the changed logits, the bytes of its offer, and what it says
// that the logits were.
struct Look {
  std::vector<float> logits;
  std::vector<std::byte> offer;
  std::vector<float> raw;
  bool operator==(const Look&) const = default;
};

Look LookOf(SequenceSampler& sampler, VocabSlice slice, std::vector<float> logits,
            int64_t position) {
  RowOffer offer;
  sampler.MakeOffer(logits, position, &offer);
  Look look;
  look.offer.resize(OfferBytes(sampler.params()));
  EncodeOffer(offer, sampler.params(), look.offer);
  for (int64_t id = slice.begin; id < slice.end; ++id)
    look.raw.push_back(sampler.RawLogit(logits, static_cast<int32_t>(id)));
  look.logits = std::move(logits);
  return look;
}

TEST(SequenceSamplerTakeBack, DraftsThatWereTakenBackLeaveNothing) {
  Random random;
  int seen = 0;  // rows that rejected drafts changed while they stood
  for (int turn = 0; turn < 400; ++turn) {
    const SamplingParams params = random.Params();
    const int64_t begin = random.Below(kVocab);
    const VocabSlice slice = {begin, begin + 1 + random.Below(static_cast<size_t>(kVocab - begin))};
    const TokenSet tokens = {kVocab - 2, {3}};
    const std::vector<int32_t> prompt = random.Ids(random.Below(6));
    SequenceSampler straight(params, tokens, slice, prompt);
    SequenceSampler drafting(params, tokens, slice, prompt);
    int64_t length = 0;
    for (int step = 0; step < 10; ++step) {
      const std::vector<float> logits = random.Logits(slice.size());
      const std::vector<int32_t> drafts = random.Ids(random.Below(5));
      const int32_t accepted = random.Below(drafts.size() + 1);
      for (size_t i = 0; i < drafts.size(); ++i) {
        drafting.Append(drafts[i]);
        if (static_cast<int32_t>(i) < accepted) straight.Append(drafts[i]);
      }
      length += accepted;
      const Look expected = LookOf(straight, slice, logits, length);
      seen += LookOf(drafting, slice, logits, length) != expected;
      for (size_t i = drafts.size(); i > static_cast<size_t>(accepted); --i)
        drafting.TakeBack(drafts[i - 1]);
      ASSERT_EQ(LookOf(drafting, slice, logits, length), expected)
          << "turn " << turn << ", step " << step;
    }
  }
  EXPECT_GT(seen, 100) << "the drafts were never felt";
}

TEST(SequenceSamplerTakeBack, EveryPenaltyForgetsWhatItCounted) {
  struct Case {
    SamplingParams params;
    std::vector<float> expected;
  };
  // Prompt 0; output 1; taken back: 1, 0, 2. All logits are 8.
  std::vector<Case> cases(3);
  cases[0].params.repetition_penalty = 2;
  cases[0].expected = {4, 4, 8, 8};
  cases[1].params.presence_penalty = 0.5;
  cases[1].expected = {8, 7.5f, 8, 8};
  cases[2].params.frequency_penalty = 0.25;
  cases[2].expected = {8, 7.75f, 8, 8};
  for (const Case& test : cases) {
    const VocabSlice slice = {0, 4};
    SequenceSampler sequence(test.params, {4, {}}, slice, std::vector<int32_t>{0});
    for (const int32_t token : {1, 1, 0, 2}) sequence.Append(token);
    for (const int32_t token : {2, 0, 1}) sequence.TakeBack(token);
    EXPECT_EQ(LookOf(sequence, slice, std::vector<float>(4, 8.0f), 5).logits, test.expected);
  }
}

// The whole way of speculation: tokens are sampled ahead behind wrong drafts, taken back, and
// sampled again.
TEST(SequenceSamplerTakeBack, APositionThatIsSampledAgainGetsItsToken) {
  constexpr int64_t kTokens = 12;
  Random random;
  for (int turn = 0; turn < 20; ++turn) {
    SamplingParams params = random.Params();
    params.temperature = 1;
    params.repetition_penalty = 1.3;
    params.frequency_penalty = 0.2;
    std::vector<std::vector<float>> rows;  // by position
    for (int64_t i = 0; i < kTokens + 3; ++i) rows.push_back(random.Logits(kVocab));
    const std::vector<int32_t> wrong = random.Ids(2 * kTokens);
    lockstep::testing::OnRanks(2, [&](Group& group) {
      const std::vector<VocabSlice> slices = {{0, 10}, {10, kVocab}};
      const VocabSlice slice = slices[group.rank()];
      const std::vector<int32_t> prompt = {1, 2};
      SequenceSampler straight(params, {kVocab, {}}, slice, prompt);
      SequenceSampler drafting(params, {kVocab, {}}, slice, prompt);
      TokenSampler sampler(group, slices, {"rank 0", "rank 1"});
      const auto sample = [&](SequenceSampler* sequence, int64_t position) {
        std::vector<float> mine(rows[position].begin() + slice.begin,
                                rows[position].begin() + slice.end);
        std::vector<SamplingRow> row = {{sequence, mine, position}};
        std::vector<SampledToken> tokens(1);
        const Status status = sampler.Sample(row, {1, 7}, &tokens);
        EXPECT_TRUE(status.ok()) << status;
        return tokens[0];
      };
      for (int64_t position = 0; position < kTokens; ++position) {
        std::vector<int32_t> ahead;
        for (int64_t i = 0; i < 2; ++i) {
          ahead.push_back(wrong[2 * position + i]);
          drafting.Append(ahead.back());
          ahead.push_back(sample(&drafting, position + 1 + i).id);  // appends it
        }
        std::reverse(ahead.begin(), ahead.end());
        for (const int32_t token : ahead) drafting.TakeBack(token);
        const SampledToken expected = sample(&straight, position);
        const SampledToken again = sample(&drafting, position);
        EXPECT_EQ(again.id, expected.id) << "turn " << turn << ", position " << position;
        EXPECT_EQ(again.logprob, expected.logprob);
      }
    });
  }
}

TEST(SequenceSamplerTakeBackDeathTest, WhatIsNotThereCannotBeTakenBack) {
  SamplingParams params;
  params.frequency_penalty = 0.2;
  SequenceSampler sequence(params, {4, {}}, {0, 4}, std::vector<int32_t>{2});
  sequence.Append(1);
  EXPECT_DEATH(sequence.TakeBack(3), "in_output");
  EXPECT_DEATH(sequence.TakeBack(2), "in_output");
}

}  // namespace
}  // namespace lockstep
