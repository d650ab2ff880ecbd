// The limit of thinking, as the sampler keeps it.
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "runtime/decode/sampler.h"

namespace lockstep {
namespace {

TEST(SequenceSampler, ThinkingEndsWhenItsBudgetIsSpent) {
  constexpr int32_t kBegin = 1, kEnd = 2;
  const auto sampled = [](SequenceSampler& sequence, int64_t position) {
    RowOffer offer;
    std::vector<float> logits = {9, 3, -50, 4, 5};
    sequence.MakeOffer(logits, position, &offer);
    EXPECT_EQ(offer.candidates.size(), 1u);
    const Candidate best = offer.candidates.empty() ? Candidate{-1} : offer.candidates[0];
    if (best.id == kEnd) {
      EXPECT_EQ(best.raw, -50) << "the model's own logit is told";
    }
    sequence.Append(best.id);
    return best.id;
  };
  SamplingParams params;
  params.thinking = {2, kBegin, kEnd};
  for (const double temperature : {0.0, 0.1}) {
    params.temperature = temperature;
    for (const auto& [prompt, begins] :
         std::vector<std::pair<std::vector<int32_t>, bool>>{{{kBegin}, true},
                                                            {{kBegin, kEnd, 0, kBegin}, true},
                                                            {{0, kBegin, kEnd}, false},
                                                            {{0}, false}}) {
      SequenceSampler sequence(params, {5, {}}, {0, 5}, prompt);
      std::vector<int32_t> ids;
      for (int64_t i = 0; i < 5; ++i) ids.push_back(sampled(sequence, i));
      EXPECT_EQ(ids, begins ? (std::vector<int32_t>{0, 0, kEnd, 0, 0})
                            : (std::vector<int32_t>{0, 0, 0, 0, 0}));
      // A model that begins by itself has what is left.
      sequence.Append(kBegin);
      ids.clear();
      for (int64_t i = 0; i < 3; ++i) ids.push_back(sampled(sequence, i));
      EXPECT_EQ(ids,
                begins ? (std::vector<int32_t>{kEnd, 0, 0}) : (std::vector<int32_t>{0, 0, kEnd}));
    }
  }
  params.thinking.tokens = -1;
  SequenceSampler free(params, {5, {}}, {0, 5}, std::vector<int32_t>{kBegin});
  for (int64_t i = 0; i < 9; ++i) EXPECT_EQ(sampled(free, i), 0);
}

TEST(SequenceSampler, TheEndOfThinkingIsChosenWhoeverHoldsIt) {
  SamplingParams params;
  params.thinking = {0, 1, 3};
  const std::vector<int32_t> prompt = {1};
  for (const double temperature : {0.0, 1.0}) {
    params.temperature = temperature;
    for (const double top_p : {1.0, 0.5}) {
      params.top_p = top_p;
      for (int64_t cut = 0; cut <= 5; ++cut) {
        std::vector<RowOffer> offers;
        for (const VocabSlice slice : {VocabSlice{0, cut}, VocabSlice{cut, 5}}) {
          std::vector<float> logits = {1, 9, 2, 8, 5};
          logits = {logits.begin() + slice.begin, logits.begin() + slice.end};
          SequenceSampler sequence(params, {5, {}}, slice, prompt);
          sequence.MakeOffer(logits, 9, &offers.emplace_back());
        }
        SampledToken token;
        ASSERT_EQ(Decide(params, offers, 9, &token), Decision::kChosen) << cut;
        EXPECT_EQ(token.id, 3) << cut << " " << temperature << " " << top_p;
      }
    }
  }
}

}  // namespace
}  // namespace lockstep
