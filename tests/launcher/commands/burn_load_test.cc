#include "launcher/commands/burn_load.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace lockstep {
namespace {

constexpr BurnShape kShape = {
    .seed = 7, .vocab_size = 100, .max_model_len = 512, .prefill_chunk = 64};

// What a right server says: a function of the request.
std::vector<int32_t> AnswerTo(const BurnRequest& request) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < request.max_tokens; ++i)
    ids.push_back(static_cast<int32_t>(static_cast<uint64_t>(request.prompt.front() + i) +
                                       request.sampling.seed));
  return ids;
}

TEST(BurnLoad, AsksOfEveryKindAndAlwaysFits) {
  BurnLoad load(kShape);
  int again = 0, cancelled = 0, sampled = 0, is_long = 0;
  std::set<std::vector<int32_t>> beginnings;
  int alike = 0;
  for (int i = 0; i < 1000; ++i) {
    const BurnRequest request = load.Next();
    ASSERT_FALSE(request.prompt.empty());
    ASSERT_GE(request.max_tokens, 1);
    ASSERT_LE(static_cast<int64_t>(request.prompt.size()) + request.max_tokens,
              kShape.max_model_len);
    ASSERT_LE(request.cancel_after, request.max_tokens);
    for (const int32_t token : request.prompt) {
      ASSERT_GE(token, 0);
      ASSERT_LT(token, kShape.vocab_size);
    }
    again += request.again ? 1 : 0;
    cancelled += request.cancel_after >= 0 ? 1 : 0;
    sampled += request.sampling.greedy() ? 0 : 1;
    is_long += static_cast<int64_t>(request.prompt.size()) > 2 * kShape.prefill_chunk ? 1 : 0;
    if (!request.again && request.prompt.size() > 64) {
      alike +=
          beginnings.insert({request.prompt.begin(), request.prompt.begin() + 64}).second ? 0 : 1;
    }
    if (request.cancel_after < 0) EXPECT_TRUE(load.Answered(request, AnswerTo(request)));
  }
  for (const int count : {again, cancelled, sampled, is_long, alike}) EXPECT_GT(count, 50);
}

TEST(BurnLoad, AnAnswerThatIsAnotherOneTheNextTimeIsFound) {
  BurnLoad load(kShape);
  int wrong = 0;
  for (int i = 0; i < 200; ++i) {
    const BurnRequest request = load.Next();
    if (request.cancel_after >= 0) continue;
    std::vector<int32_t> ids = AnswerTo(request);
    if (request.again) ids.back() ^= 1;
    const bool same = load.Answered(request, ids);
    EXPECT_EQ(same, !request.again);
    wrong += same ? 0 : 1;
  }
  EXPECT_GT(wrong, 20);
}

TEST(BurnLoad, TheSameSeedAsksTheSame) {
  BurnLoad a(kShape), b(kShape);
  BurnShape other = kShape;
  other.seed = 8;
  BurnLoad c(other);
  int different = 0;
  for (int i = 0; i < 100; ++i) {
    const BurnRequest one = a.Next(), two = b.Next(), three = c.Next();
    EXPECT_EQ(one.prompt, two.prompt);
    EXPECT_EQ(one.sampling, two.sampling);
    EXPECT_EQ(one.cancel_after, two.cancel_after);
    different += one.prompt != three.prompt ? 1 : 0;
    EXPECT_TRUE(a.Answered(one, AnswerTo(one)));
    EXPECT_TRUE(b.Answered(two, AnswerTo(two)));
  }
  EXPECT_GT(different, 90);
}

TEST(BurnLoad, ShortContextsHoldPromptAndAnswer) {
  BurnShape shape = kShape;
  for (const int64_t longest : {2, 3, 16, 33}) {
    shape.max_model_len = longest;
    BurnLoad load(shape);
    for (int i = 0; i < 100; ++i) {
      const BurnRequest request = load.Next();
      ASSERT_LE(static_cast<int64_t>(request.prompt.size()) + request.max_tokens, longest);
    }
  }
}

}  // namespace
}  // namespace lockstep
