#include "runtime/decode/sampling_params.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <string>
#include <vector>

namespace lockstep {
namespace {

struct BadParams {
  const char* field;
  std::function<void(SamplingParams*)> break_it;
};

TEST(SamplingParams, DefaultsAreValid) { EXPECT_TRUE(ValidateSamplingParams({}, 100).ok()); }

TEST(SamplingParams, EveryFieldOutOfRangeIsNamed) {
  const std::vector<BadParams> cases = {
      {"temperature", [](auto* p) { p->temperature = -0.1; }},
      {"temperature", [](auto* p) { p->temperature = std::nan(""); }},
      {"temperature", [](auto* p) { p->temperature = INFINITY; }},
      {"top_k", [](auto* p) { p->top_k = -1; }},
      {"top_p", [](auto* p) { p->top_p = 0; }},
      {"top_p", [](auto* p) { p->top_p = 1.01; }},
      {"min_p", [](auto* p) { p->min_p = -0.5; }},
      {"repetition_penalty", [](auto* p) { p->repetition_penalty = 0; }},
      {"presence_penalty", [](auto* p) { p->presence_penalty = 1e9; }},
      {"frequency_penalty", [](auto* p) { p->frequency_penalty = std::nan(""); }},
      {"logprobs", [](auto* p) { p->logprobs = 21; }},
      {"logprobs", [](auto* p) { p->logprobs = -2; }},
      {"logit_bias",
       [](auto* p) {
         p->logit_bias = {{100, 1.0f}};
       }},
      {"logit_bias",
       [](auto* p) {
         p->logit_bias = {{-1, 1.0f}};
       }},
      {"logit_bias",
       [](auto* p) {
         p->logit_bias = {{1, 101.0f}};
       }},
      {"logit_bias",
       [](auto* p) {
         p->logit_bias = {{1, 1.0f}, {1, 2.0f}};
       }},
      {"logit_bias",
       [](auto* p) {
         p->logit_bias.assign(kMaxLogitBias + 1, {1, 1.0f});
       }},
  };
  for (const BadParams& test : cases) {
    SamplingParams params;
    test.break_it(&params);
    const Status status = ValidateSamplingParams(params, 100);
    ASSERT_FALSE(status.ok()) << test.field;
    EXPECT_EQ(KindOf(status), ErrorKind::kRequest);
    EXPECT_NE(MessageOf(status).find(test.field), std::string::npos) << status;
  }
}

TEST(StopParams, BadOnesAreNamed) {
  const auto check = [](StopParams params, const char* field) {
    const Status status = ValidateStopParams(params, 100);
    ASSERT_FALSE(status.ok()) << field;
    EXPECT_NE(MessageOf(status).find(field), std::string::npos) << status;
  };
  EXPECT_TRUE(ValidateStopParams({{99}, {"x"}, 1}, 100).ok());
  check({{}, {}, 0}, "max_tokens");
  check({{}, {""}, 1}, "stop");
  check({{}, std::vector<std::string>(10'000, "x"), 1}, "stop");
  check({{}, {std::string(2'000, 'x')}, 1}, "stop");
  check({{100}, {}, 1}, "stop_token_ids");
  check({std::vector<int32_t>(2'000, 1), {}, 1}, "stop_token_ids");
}

}  // namespace
}  // namespace lockstep
