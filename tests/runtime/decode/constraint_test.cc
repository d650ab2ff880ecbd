// Sampling under a constraint: exactly that of a vocabulary which has the allowed tokens alone.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "runtime/decode/sampler.h"
#include "tests/runtime/engine/thread_group.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

constexpr int32_t kVocab = 150;

class FixedSet final : public TokenConstraint {
 public:
  explicit FixedSet(std::vector<uint32_t> set) : set_(std::move(set)) {}
  void Append(int32_t) override {}
  std::span<const uint32_t> Allowed() override { return set_; }
  bool too_slow() const override { return false; }

 private:
  std::vector<uint32_t> set_;
};

bool Has(const std::vector<uint32_t>& set, int64_t id) {
  return id / 32 < static_cast<int64_t>(set.size()) && (set[id / 32] >> (id % 32) & 1) != 0;
}

SampledToken Sample(int ranks, const SamplingParams& params, const std::vector<float>& logits,
                    const std::vector<uint32_t>* set, const std::vector<int32_t>& prompt = {}) {
  SampledToken token;
  testing::OnRanks(ranks, [&](Group& group) {
    std::vector<VocabSlice> slices;
    std::vector<std::string> names;
    for (int r = 0; r < ranks; ++r) {
      slices.push_back({kVocab * r / ranks, kVocab * (r + 1) / ranks});
      names.push_back("rank " + std::to_string(r));
    }
    const VocabSlice slice = slices[group.rank()];
    std::unique_ptr<TokenConstraint> constraint;
    if (set != nullptr) constraint = std::make_unique<FixedSet>(*set);
    SequenceSampler sequence(params, {kVocab - 3, {7}}, slice, prompt, std::move(constraint));
    std::vector<float> mine(logits.begin() + slice.begin, logits.begin() + slice.end);
    std::vector<SamplingRow> rows = {{&sequence, mine, 11}};
    TokenSampler sampler(group, slices, names);
    std::vector<SampledToken> tokens;
    ASSERT_TRUE(sampler.Sample(rows, {}, &tokens).ok());
    if (group.rank() == 0) token = tokens[0];
  });
  return token;
}

TEST(Constraint, TheDrawIsThatOfTheAllowedTokensAlone) {
  std::mt19937_64 random(testing::TestSeed());
  std::normal_distribution<float> normal(0, 3);
  for (int turn = 0; turn < 120; ++turn) {
    SamplingParams params;
    params.temperature = std::vector<double>{0, 0.7, 1.5}[random() % 3];
    params.top_k = random() % 3 == 0 ? 4 : 0;
    params.top_p = random() % 3 == 0 ? 0.9 : 1.0;
    params.min_p = random() % 4 == 0 ? 0.05 : 0.0;
    if (random() % 2 == 0) params.logit_bias = {{static_cast<int32_t>(random() % kVocab), 3.0f}};
    params.seed = random();
    params.logprobs = 2;
    std::vector<float> logits(kVocab), alone;
    for (float& logit : logits) logit = normal(random);
    // Shorter than the vocabulary, too: ids behind it are not allowed.
    std::vector<uint32_t> set(random() % 2 == 0 ? 5 : 3);
    for (uint32_t& word : set) word = static_cast<uint32_t>(random() & random() & random());
    set[random() % 3] |= 1u << 20;
    alone = logits;
    for (int64_t id = 0; id < kVocab; ++id) {
      if (!Has(set, id)) alone[id] = -std::numeric_limits<float>::infinity();
    }
    const SampledToken want = Sample(1, params, alone, nullptr);
    const SampledToken free = Sample(1, params, logits, nullptr);
    for (int ranks = 1; ranks <= 3; ++ranks) {
      const SampledToken got = Sample(ranks, params, logits, &set);
      EXPECT_EQ(got.id, want.id);
      EXPECT_TRUE(Has(set, got.id));
      // Log-probabilities stay those of the model.
      double sum = 0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit));
      EXPECT_NEAR(got.logprob, logits[got.id] - std::log(sum), 1e-9);
      EXPECT_EQ(got.best, free.best);
    }
  }
}

// The budget of thinking would leave </think> alone, and the grammar everything but that.
TEST(Constraint, AnEndOfThinkingThatIsNotAllowedDoesNotCome) {
  SamplingParams params;
  params.temperature = 0;
  params.thinking = {0, 1, 2};
  std::vector<float> logits(kVocab, 0);
  logits[40] = 5;
  for (const bool allowed : {true, false}) {
    std::vector<uint32_t> set = {allowed ? 4u : 0u, 1u << 8 | 1u << 9};
    for (int ranks = 1; ranks <= 3; ++ranks)
      EXPECT_EQ(Sample(ranks, params, logits, &set, {1}).id, allowed ? 2 : 40) << ranks;
  }
}

}  // namespace
}  // namespace lockstep
