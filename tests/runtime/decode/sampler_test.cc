// The distributed sampler against a straightforward one: a full softmax in double over the whole
// vocabulary.
#include "runtime/decode/sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "runtime/decode/random.h"
#include "tests/runtime/engine/thread_group.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using Logits = std::vector<float>;

std::vector<VocabSlice> Cut(int64_t vocab, const std::vector<int64_t>& bounds) {
  std::vector<VocabSlice> slices;
  int64_t begin = 0;
  for (const int64_t end : bounds) {
    slices.push_back({begin, end});
    begin = end;
  }
  slices.push_back({begin, vocab});
  return slices;
}

std::vector<std::string> Names(size_t ranks) {
  std::vector<std::string> names;
  for (size_t r = 0; r < ranks; ++r)
    names.push_back("rank " + std::to_string(r) + " (test, pid 1)");
  return names;
}

struct Case {
  SamplingParams params;
  TokenSet tokens;
  std::vector<int32_t> prompt;
  std::vector<int32_t> output;
  Logits logits;
};

// What every rank chose; all must be equal.
SampledToken SampleOnRanks(const Case& test, const std::vector<VocabSlice>& slices,
                           int64_t position, int64_t* gathered_whole = nullptr) {
  std::vector<SampledToken> chosen(slices.size());
  lockstep::testing::OnRanks(static_cast<int>(slices.size()), [&](Group& group) {
    const VocabSlice slice = slices[group.rank()];
    SequenceSampler sequence(test.params, test.tokens, slice, test.prompt);
    for (const int32_t token : test.output) sequence.Append(token);
    TokenSampler sampler(group, slices, Names(slices.size()));
    Logits mine(test.logits.begin() + slice.begin, test.logits.begin() + slice.end);
    std::vector<SamplingRow> rows = {{&sequence, mine, position}};
    std::vector<SampledToken> tokens;
    const Status status = sampler.Sample(rows, {1, 7}, &tokens);
    ASSERT_TRUE(status.ok()) << status;
    chosen[group.rank()] = tokens[0];
    if (gathered_whole != nullptr && group.rank() == 0)
      *gathered_whole = sampler.rows_gathered_whole();
  });
  for (const SampledToken& token : chosen) {
    EXPECT_EQ(token.id, chosen[0].id);
    EXPECT_EQ(token.logprob, chosen[0].logprob);
    EXPECT_EQ(token.best, chosen[0].best);
  }
  return chosen[0];
}

// The same by the book.
class Reference {
 public:
  explicit Reference(const Case& test) : test_(test), adjusted_(test.logits) {
    std::map<int32_t, int> output;
    for (const int32_t token : test.output) ++output[token];
    std::map<int32_t, int> seen = output;
    for (const int32_t token : test.prompt) ++seen[token];
    for (const auto& [id, count] : seen) {
      const float penalty = static_cast<float>(test.params.repetition_penalty);
      adjusted_[id] = adjusted_[id] > 0 ? adjusted_[id] / penalty : adjusted_[id] * penalty;
    }
    for (const auto& [id, count] : output) {
      adjusted_[id] -= static_cast<float>(test.params.presence_penalty);
      adjusted_[id] -=
          static_cast<float>(test.params.frequency_penalty) * static_cast<float>(count);
    }
    for (const auto& [id, bias] : test.params.logit_bias) adjusted_[id] += bias;
    for (int64_t id = 0; id < static_cast<int64_t>(adjusted_.size()); ++id) {
      const auto& unknown = test.tokens.unknown;
      if (id < test.tokens.limit &&
          std::find(unknown.begin(), unknown.end(), id) == unknown.end()) {
        order_.push_back(static_cast<int32_t>(id));
      }
    }
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int32_t a, int32_t b) { return adjusted_[a] > adjusted_[b]; });
  }

  // Ids that may be drawn, best first. The bounds of top-p and min-p are scaled by `slack`: where 1
  // plus and minus a little give different sets, the decision lies within rounding.
  std::vector<int32_t> Kept(double slack) const {
    const SamplingParams& params = test_.params;
    if (params.greedy()) return {order_[0]};
    std::vector<int32_t> kept = order_;
    if (params.top_k > 0) kept.resize(std::min<size_t>(kept.size(), params.top_k));
    const auto weight = [&](int32_t id) {
      return std::exp((static_cast<double>(adjusted_[id]) - adjusted_[order_[0]]) /
                      params.temperature);
    };
    if (params.top_p < 1) {
      double total = 0, mass = 0;
      for (const int32_t id : kept) total += weight(id);
      size_t count = 0;
      while (count < kept.size() && mass < slack * params.top_p * total)
        mass += weight(kept[count++]);
      kept.resize(count);
    }
    if (params.min_p > 0)
      std::erase_if(kept, [&](int32_t id) { return weight(id) < params.min_p * slack; });
    return kept;
  }

  int32_t Draw(int64_t position, double slack) const {
    const uint64_t key = NoiseKey(test_.params.seed, position);
    int32_t best = -1;
    double score = 0;
    for (const int32_t id : Kept(slack)) {
      const double value = test_.params.greedy()
                               ? adjusted_[id]
                               : adjusted_[id] / test_.params.temperature + Gumbel(key, id);
      if (best < 0 || value > score || (value == score && id < best)) {
        best = id;
        score = value;
      }
    }
    return best;
  }

  double Logprob(int32_t id) const {
    double total = 0, top = *std::max_element(test_.logits.begin(), test_.logits.end());
    for (const float logit : test_.logits) total += std::exp(logit - top);
    return test_.logits[id] - top - std::log(total);
  }

 private:
  const Case& test_;
  Logits adjusted_;
  std::vector<int32_t> order_;
};

Case RandomCase(std::mt19937_64* random) {
  const auto below = [&](int64_t n) {
    return static_cast<int64_t>((*random)() % static_cast<uint64_t>(n));
  };
  const auto pick = [&](std::initializer_list<double> values) {
    return *(values.begin() + below(values.size()));
  };
  Case test;
  const int64_t vocab = 1 + below(below(4) == 0 ? 3'000 : 400);
  const double spread = pick({0.0, 0.5, 3.0, 20.0});
  std::normal_distribution<float> normal(0, 1);
  for (int64_t i = 0; i < vocab; ++i) {
    float logit = static_cast<float>(spread) * normal(*random);
    if (below(5) == 0) logit = std::round(logit);  // ties
    test.logits.push_back(logit);
  }
  test.tokens.limit = 1 + below(vocab);
  for (int32_t id = 1; id < test.tokens.limit; ++id) {
    if (below(30) == 0) test.tokens.unknown.push_back(id);
  }
  for (int i = 0; i < below(20); ++i) test.prompt.push_back(static_cast<int32_t>(below(vocab)));
  for (int i = 0; i < below(20); ++i) test.output.push_back(static_cast<int32_t>(below(vocab)));
  SamplingParams& params = test.params;
  params.temperature = pick({0.0, 0.3, 1.0, 1.0, 2.5});
  params.top_k = below(2) == 0 ? 0 : 1 + below(below(3) == 0 ? 600 : 20);
  params.top_p = pick({1.0, 1.0, 0.95, 0.5, 0.05, 0.999});
  params.min_p = pick({0.0, 0.0, 0.1, 0.001});
  params.repetition_penalty = pick({1.0, 1.3, 0.8});
  params.presence_penalty = pick({0.0, 0.7, -0.4});
  params.frequency_penalty = pick({0.0, 0.2});
  if (below(3) == 0)
    params.logit_bias = {
        {static_cast<int32_t>(below(vocab)), static_cast<float>(normal(*random) * 5)}};
  params.seed = (*random)();
  params.logprobs = static_cast<int32_t>(below(4)) == 0 ? static_cast<int32_t>(below(21)) : -1;
  return test;
}

std::vector<VocabSlice> RandomCut(std::mt19937_64* random, int64_t vocab, int ranks) {
  std::vector<int64_t> bounds;
  for (int r = 1; r < ranks; ++r) bounds.push_back(static_cast<int64_t>((*random)() % (vocab + 1)));
  std::sort(bounds.begin(), bounds.end());
  return Cut(vocab, bounds);
}

TEST(TokenSampler, ChoosesWhatTheReferenceChoosesOnOneToFiveRanks) {
  std::mt19937_64 random(lockstep::testing::TestSeed());
  int64_t whole = 0;
  for (int turn = 0; turn < 400; ++turn) {
    const Case test = RandomCase(&random);
    const Reference reference(test);
    const int64_t position = static_cast<int64_t>(random() % 1'000);
    const int32_t expected = reference.Draw(position, 1 - 1e-11);
    const int32_t also_right = reference.Draw(position, 1 + 1e-11);
    std::optional<int32_t> chosen;
    for (int ranks = 1; ranks <= 5; ++ranks) {
      int64_t rows = 0;
      const SampledToken token =
          SampleOnRanks(test, RandomCut(&random, static_cast<int64_t>(test.logits.size()), ranks),
                        position, &rows);
      ASSERT_TRUE(token.id == expected || token.id == also_right)
          << token.id << " instead of " << expected << ", "
          << "turn " << turn << ", ranks " << ranks << ", T " << test.params.temperature << ", k "
          << test.params.top_k << ", p " << test.params.top_p << ", min " << test.params.min_p;
      // Between ranks there is no rounding to hide behind.
      ASSERT_EQ(token.id, chosen.value_or(token.id)) << "turn " << turn << ", ranks " << ranks;
      chosen = token.id;
      whole += rows;
      if (test.params.logprobs < 0) continue;
      ASSERT_NEAR(token.logprob, reference.Logprob(token.id), 1e-12);
      for (const TokenLogprob& best : token.best)
        ASSERT_NEAR(best.logprob, reference.Logprob(best.id), 1e-12);
      ASSERT_TRUE(
          std::is_sorted(token.best.begin(), token.best.end(),
                         [](const auto& a, const auto& b) { return a.logprob > b.logprob; }));
    }
  }
  EXPECT_GT(whole, 0) << "the rare path was never taken";
}

// Equal weights meet top_p exactly: the hardest tie there is.
TEST(TokenSampler, TopPOfEqualWeightsKeepsTheSameTokensForEveryCut) {
  Case test;
  test.tokens.limit = 40;
  test.params.top_p = 0.5;
  test.params.temperature = 0.3;
  std::mt19937_64 random(1);
  for (int turn = 0; turn < 60; ++turn) {
    test.params.seed = random();
    test.logits.assign(40, 0.1f + static_cast<float>(turn));
    const int32_t one = SampleOnRanks(test, Cut(40, {}), 3).id;
    EXPECT_LT(one, 20);
    EXPECT_EQ(SampleOnRanks(test, RandomCut(&random, 40, 3), 3).id, one);
  }
}

TEST(SequenceSampler, PenaltiesAndBiasFollowTheBook) {
  SamplingParams params;
  params.repetition_penalty = 2;
  params.presence_penalty = 0.5;
  params.frequency_penalty = 0.25;
  params.logit_bias = {{3, 1.0f}, {0, -1.0f}};
  SequenceSampler sequence(params, {6, {5}}, {0, 7}, std::vector<int32_t>{0, 1});
  for (const int32_t token : {1, 2, 2, 3}) sequence.Append(token);
  Logits logits = {4.0f, -4.0f, 3.0f, 1.0f, 7.0f, 9.0f, 9.0f};
  RowOffer offer;
  sequence.MakeOffer(logits, 0, &offer);
  Logits choices(7);
  sequence.CopyChoices(logits, choices);
  EXPECT_FLOAT_EQ(choices[0], 4.0f / 2 - 1);              // prompt only: no presence, no frequency
  EXPECT_FLOAT_EQ(choices[1], -4.0f * 2 - 0.5f - 0.25f);  // negative logits are multiplied
  EXPECT_FLOAT_EQ(choices[2], 3.0f / 2 - 0.5f - 2 * 0.25f);  // twice in the output
  EXPECT_FLOAT_EQ(choices[3], 1.0f / 2 - 0.5f - 0.25f + 1);
  EXPECT_FLOAT_EQ(choices[4], 7.0f);
  EXPECT_TRUE(std::isinf(choices[5])) << "a hole in the tokenizer";
  EXPECT_TRUE(std::isinf(choices[6])) << "padding";
  EXPECT_EQ(sequence.RawLogit(logits, 1), -4.0f);
}

TEST(TokenSampler, GreedyTiesGoToTheLowestIdWhereverTheCutIs) {
  Case test;
  test.logits = {1, 3, 3, 3, 2};
  test.tokens.limit = 5;
  test.params.temperature = 0;
  for (int64_t cut = 0; cut <= 5; ++cut) EXPECT_EQ(SampleOnRanks(test, Cut(5, {cut}), 9).id, 1);
}

TEST(TokenSampler, PaddingAndHolesAreNeverChosen) {
  Case test;
  test.logits = {1, 9, 2, 8, 50};
  test.tokens = {4, {1}};
  for (const double temperature : {0.0, 1.0}) {
    test.params.temperature = temperature;
    for (int64_t position = 0; position < 50; ++position) {
      const int32_t id = SampleOnRanks(test, Cut(5, {2}), position).id;
      EXPECT_TRUE(id == 0 || id == 2 || id == 3) << id;
    }
  }
}

TEST(TokenSampler, LogprobsAreThoseOfTheRawDistribution) {
  Case test;
  test.logits = {0, 1, 2, 3};
  test.tokens = {3, {}};  // id 3 is padding: part of the sum, not of the list
  test.params.temperature = 0;
  test.params.logprobs = 2;
  test.params.logit_bias = {{0, 100.0f}};
  const SampledToken token = SampleOnRanks(test, Cut(4, {1, 3}), 0);
  EXPECT_EQ(token.id, 0);
  EXPECT_NEAR(token.logprob, Reference(test).Logprob(0), 1e-12);
  ASSERT_EQ(token.best.size(), 2u);
  EXPECT_EQ(token.best[0].id, 2);
  EXPECT_EQ(token.best[1].id, 1);
}

TEST(TokenSampler, ARowWithoutFiniteLogitsIsAnErrorEverywhere) {
  lockstep::testing::OnRanks(2, [](Group& group) {
    const std::vector<VocabSlice> slices = Cut(4, {2});
    SequenceSampler sequence({}, {4, {}}, slices[group.rank()], {});
    TokenSampler sampler(group, slices, Names(2));
    std::vector<float> mine(2, std::nanf(""));
    std::vector<SamplingRow> rows = {{&sequence, mine, 0}};
    std::vector<SampledToken> tokens;
    EXPECT_FALSE(sampler.Sample(rows, {1, 0}, &tokens).ok());
  });
}

TEST(TokenSampler, ARankWithOtherBitsIsNamedByAll) {
  lockstep::testing::OnRanks(3, [](Group& group) {
    TokenSampler sampler(group, Cut(3, {1, 2}), Names(3));
    std::vector<SampledToken> tokens;
    const Status status = sampler.Sample({}, {17, group.rank() == 2 ? 5u : 4u}, &tokens);
    ASSERT_FALSE(status.ok());
    EXPECT_EQ(KindOf(status), ErrorKind::kPeerLost);
    EXPECT_NE(MessageOf(status).find("rank 2 (test, pid 1) computed other bits"), std::string::npos)
        << status;
    EXPECT_NE(MessageOf(status).find("step 17"), std::string::npos);
  });
}

TEST(DisagreeingRank, TheMajorityIsRightAndRankZeroWinsATie) {
  EXPECT_EQ(DisagreeingRank(std::vector<StepDigest>{{1, 1}, {1, 1}, {1, 1}}), -1);
  EXPECT_EQ(DisagreeingRank(std::vector<StepDigest>{{1, 1}, {1, 2}}), 1);
  EXPECT_EQ(DisagreeingRank(std::vector<StepDigest>{{1, 2}, {1, 1}, {1, 1}}), 0);
  EXPECT_EQ(DisagreeingRank(std::vector<StepDigest>{{1, 1}, {2, 1}}), 1);
}

// Chi-square over 20,000 draws at successive positions, one fixed seed: a wrong distribution fails
// by far.
double ChiSquare(const Case& test, const std::vector<double>& expected, int draws) {
  std::vector<double> counts(expected.size());
  const std::vector<VocabSlice> slices = Cut(static_cast<int64_t>(test.logits.size()), {3});
  lockstep::testing::OnRanks(2, [&](Group& group) {
    const VocabSlice slice = slices[group.rank()];
    SequenceSampler sequence(test.params, test.tokens, slice, {});
    TokenSampler sampler(group, slices, Names(2));
    std::vector<SampledToken> tokens;
    for (int i = 0; i < draws; ++i) {
      Logits mine(test.logits.begin() + slice.begin, test.logits.begin() + slice.end);
      std::vector<SamplingRow> rows = {{&sequence, mine, i}};
      ASSERT_TRUE(sampler.Sample(rows, {1, 0}, &tokens).ok());
      if (group.rank() == 0) ++counts[tokens[0].id];
    }
  });
  double chi = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "id " << i << " is outside the kept set";
      continue;
    }
    chi += (counts[i] - draws * expected[i]) * (counts[i] - draws * expected[i]) /
           (draws * expected[i]);
  }
  return chi;
}

TEST(TokenSampler, DrawsFollowTheDistribution) {
  Case test;
  test.logits = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, 1.5f, -2.0f, 0.0f};
  test.tokens.limit = 8;
  test.params.seed = 20'261'121;
  for (const double temperature : {0.7, 1.0, 2.0}) {
    test.params.temperature = temperature;
    std::vector<double> expected;
    double total = 0;
    for (const float logit : test.logits) total += std::exp(logit / temperature);
    for (const float logit : test.logits) expected.push_back(std::exp(logit / temperature) / total);
    EXPECT_LT(ChiSquare(test, expected, 20'000), 24.3) << "7 degrees of freedom, p = 0.001";
  }
}

TEST(TokenSampler, RestrictedDrawsFollowTheRenormalizedDistribution) {
  Case test;
  test.logits = {0.0f, 1.0f, -1.0f, 2.0f, 0.5f, 1.5f, -2.0f, 0.0f};
  test.tokens.limit = 8;
  test.params.seed = 7;
  test.params.top_k = 3;  // ids 3, 5, 1
  const double total = std::exp(2.0) + std::exp(1.5) + std::exp(1.0);
  const std::vector<double> expected = {0, std::exp(1.0) / total, 0, std::exp(2.0) / total,
                                        0, std::exp(1.5) / total, 0, 0};
  EXPECT_LT(ChiSquare(test, expected, 20'000), 13.8) << "2 degrees of freedom, p = 0.001";
}

TEST(TokenSampler, ARowDoesNotDependOnItsNeighbours) {
  std::mt19937_64 random(lockstep::testing::TestSeed());
  std::vector<Case> cases;
  for (int i = 0; i < 12; ++i) {
    cases.push_back(RandomCase(&random));
    cases.back().logits.resize(300, -1.0f);
  }
  std::vector<int32_t> alone;
  for (Case& test : cases) {
    test.prompt.clear();
    test.output.clear();
    test.params.logit_bias.clear();
    test.tokens = {250, {}};
    alone.push_back(SampleOnRanks(test, Cut(300, {100, 200}), 5).id);
  }
  lockstep::testing::OnRanks(3, [&](Group& group) {
    const std::vector<VocabSlice> slices = Cut(300, {100, 200});
    const VocabSlice slice = slices[group.rank()];
    std::vector<SequenceSampler> sequences;
    std::vector<Logits> logits;
    for (const Case& test : cases) {
      sequences.emplace_back(test.params, test.tokens, slice, std::vector<int32_t>{});
      logits.emplace_back(test.logits.begin() + slice.begin, test.logits.begin() + slice.end);
    }
    std::vector<SamplingRow> rows;
    for (size_t i = 0; i < cases.size(); ++i) rows.push_back({&sequences[i], logits[i], 5});
    TokenSampler sampler(group, slices, Names(3));
    std::vector<SampledToken> tokens;
    ASSERT_TRUE(sampler.Sample(rows, {1, 0}, &tokens).ok());
    for (size_t i = 0; i < cases.size(); ++i) EXPECT_EQ(tokens[i].id, alone[i]) << i;
  });
}

TEST(SelectPerturbed, ThePruningChangesNothing) {
  std::mt19937_64 random(lockstep::testing::TestSeed());
  std::normal_distribution<float> normal(0, 8);
  for (int turn = 0; turn < 200; ++turn) {
    Logits logits(2'000);
    for (float& logit : logits) logit = normal(random);
    const double temperature = turn % 2 == 0 ? 1.0 : 3.0;
    const uint64_t key = random();
    Candidate best;
    ASSERT_TRUE(SelectPerturbed(logits, 100, temperature, key, &best));
    int64_t expected = -1;
    double score = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double value = logits[i] / temperature + Gumbel(key, static_cast<int64_t>(100 + i));
      if (expected < 0 || value > score) {
        expected = static_cast<int64_t>(100 + i);
        score = value;
      }
    }
    ASSERT_EQ(best.id, expected);
    ASSERT_EQ(best.score, score);
  }
}

TEST(Offer, LyingCountsAreRefused) {
  SamplingParams params;
  params.top_k = 4;
  RowOffer offer;
  offer.candidates = {{1, 0.5f, 0.5}};
  std::vector<std::byte> bytes(OfferBytes(params));
  EncodeOffer(offer, params, bytes);
  RowOffer decoded;
  ASSERT_TRUE(DecodeOffer(bytes, params, &decoded).ok());
  EXPECT_EQ(decoded.candidates.size(), 1u);
  bytes[2 * sizeof(ExpSum)] = std::byte{5};
  EXPECT_FALSE(DecodeOffer(bytes, params, &decoded).ok());
  bytes[2 * sizeof(ExpSum) + 3] = std::byte{0x80};
  EXPECT_FALSE(DecodeOffer(bytes, params, &decoded).ok());
  EXPECT_FALSE(DecodeOffer(std::span(bytes).first(8), params, &decoded).ok());
}

// They would break the order of the candidates and lead the sum of exponentials astray.
TEST(Offer, ScoresThatNoLogitGivesAreRefused) {
  SamplingParams params;
  params.top_k = 4;
  params.logprobs = 1;
  for (const double wrong : {std::nan(""), HUGE_VAL, -HUGE_VAL, 1e60}) {
    for (const bool raw : {false, true}) {
      RowOffer offer;
      offer.candidates = {{1, 0.5f, raw ? 0.5 : wrong}};
      offer.raw_best = {{1, 0.5f, raw ? wrong : 0.5}};
      std::vector<std::byte> bytes(OfferBytes(params));
      EncodeOffer(offer, params, bytes);
      RowOffer decoded;
      EXPECT_FALSE(DecodeOffer(bytes, params, &decoded).ok()) << wrong << " " << raw;
    }
  }
}

}  // namespace
}  // namespace lockstep
