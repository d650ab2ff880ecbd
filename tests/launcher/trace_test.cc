#include "launcher/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "tests/fuzz/replay.h"
#include "tests/fuzz/trace_fuzz_body.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

TEST(Trace, LinesAreRequests) {
  const auto trace = ParseTrace(
      "{\"at_s\": 0, \"prompt_tokens\": 512, \"output_tokens\": 128}\n\n"
      "{\"at_s\": 1.5, \"prompt_tokens\": 5, \"output_tokens\": 1, \"prefix_group\": 3, "
      "\"prefix_tokens\": 4, \"user\": \"a\"}",
      "t.jsonl");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(*trace, (std::vector<TraceRequest>{{0, 512, 128, -1, 0, ""}, {1.5, 5, 1, 3, 4, "a"}}));
}

TEST(Trace, WhatIsWrongIsSaidWithItsLine) {
  const auto error = [](const std::string& line) {
    const auto trace =
        ParseTrace("{\"at_s\": 2, \"prompt_tokens\": 1, \"output_tokens\": 1}\n" + line, "t.jsonl");
    EXPECT_FALSE(trace.ok()) << line;
    return MessageOf(trace.status());
  };
  EXPECT_THAT(error("nothing"), HasSubstr("t.jsonl:2: not a JSON object"));
  EXPECT_THAT(error("[1]"), HasSubstr("not a JSON object"));
  EXPECT_THAT(error(R"({"at_s": 2, "prompt_tokens": 1})"), HasSubstr("'output_tokens' is missing"));
  const auto with = [&](const std::string& more) {
    return error(R"({"at_s": 2, "prompt_tokens": 5, "output_tokens": 1, )" + more + "}");
  };
  EXPECT_THAT(with(R"("prompt_tokens": 0)"), HasSubstr("'prompt_tokens' must be a whole number"));
  EXPECT_THAT(with(R"("output_tokens": 1.5)"), HasSubstr("'output_tokens' must be"));
  EXPECT_THAT(with(R"("output_tokens": 99999999999999999999)"), HasSubstr("'output_tokens'"));
  EXPECT_THAT(with(R"("at_s": -1)"), HasSubstr("'at_s' must be seconds"));
  EXPECT_THAT(with(R"("at_s": "2")"), HasSubstr("'at_s' must be seconds"));
  EXPECT_THAT(with(R"("at_s": 1)"), HasSubstr("comes at 2: sort"));
  EXPECT_THAT(with(R"("prefix_group": 1)"), HasSubstr("go together"));
  EXPECT_THAT(with(R"("prefix_group": 1, "prefix_tokens": 6)"), HasSubstr("the prompt has 5"));
  EXPECT_THAT(with(R"("user": 7)"), HasSubstr("'user' must be a text"));
  EXPECT_THAT(with(R"("prompt": 7)"), HasSubstr("'prompt' is no key"));
  EXPECT_THAT(MessageOf(ParseTrace(" \n", "t").status()), HasSubstr("t: no requests"));
  EXPECT_THAT(MessageOf(ReadTrace("/does/not/exist").status()), HasSubstr("--trace"));
}

TraceShape Shape() {
  TraceShape shape;
  shape.rate = 20;
  shape.duration_s = 1000;
  shape.prompt = {300, 0.7, 4000};
  shape.output = {50, 0};
  shape.prefix_groups = 4;
  shape.prefix_tokens = 64;
  shape.users = 3;
  return shape;
}

TEST(Trace, WhatIsMadeIsReadBackAndDependsOnTheSeedAlone) {
  TraceShape shape = Shape();
  const std::vector<TraceRequest> trace = MakeTrace(shape);
  EXPECT_EQ(MakeTrace(shape), trace);
  const auto read = ParseTrace(TraceText(trace), "t");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(TraceText(*read), TraceText(trace));
  shape.seed = 2;
  EXPECT_NE(MakeTrace(shape), trace);
}

// 20,000 requests: the bounds are five standard errors.
TEST(Trace, ArrivalsAndLengthsAreAsAsked) {
  const std::vector<TraceRequest> trace = MakeTrace(Shape());
  const auto count = static_cast<double>(trace.size());
  EXPECT_NEAR(count, 20'000, 5 * std::sqrt(20'000.0));
  double prompts = 0, squares = 0, before_s = 0;
  std::set<int64_t> groups;
  std::set<std::string> users;
  for (const TraceRequest& request : trace) {
    prompts += static_cast<double>(request.prompt_tokens - 64);
    squares += std::pow(20 * (request.at_s - before_s), 2);
    before_s = request.at_s;
    groups.insert(request.prefix_group);
    users.insert(request.user);
    EXPECT_EQ(request.output_tokens, 50);
  }
  // A log-normal length of spread s deviates by sqrt(exp(s^2) - 1) of its mean.
  EXPECT_NEAR(prompts / count, 300, 5 * 300 * std::sqrt((std::exp(0.49) - 1) / count));
  // Exponential gaps of mean 1 have a mean square of 2, which deviates by sqrt(20).
  EXPECT_NEAR(squares / count, 2, 5 * std::sqrt(20 / count));
  EXPECT_EQ(groups.size(), 4u);
  EXPECT_EQ(users.size(), 3u);
}

TEST(Trace, ADayHasItsHours) {
  TraceShape shape;
  shape.rate = 0.5;
  shape.duration_s = 86'400;
  shape.day = true;
  std::array<double, 24> hours{};
  const std::vector<TraceRequest> trace = MakeTrace(shape);
  for (const TraceRequest& request : trace) ++hours[static_cast<size_t>(request.at_s / 3600)];
  EXPECT_NEAR(static_cast<double>(trace.size()), 43'200, 5 * std::sqrt(43'200.0));
  // Half past two and half past three are 1.5 % from the lowest, of 1800 on average.
  EXPECT_NEAR(hours[2] + hours[3], 2 * 1800 * 0.2, 5 * std::sqrt(720.0) + 30);
  EXPECT_NEAR(hours[14] + hours[15], 2 * 1800 * 1.8, 5 * std::sqrt(6480.0) + 30);
}

TEST(Trace, PromptsShareWhatTheirGroupHas) {
  const TraceRequest one = {0, 100, 1, 2, 40, ""}, other = {0, 90, 1, 3, 40, ""};
  const auto a = PromptOf(one, 0, 7, 1000), b = PromptOf(one, 1, 7, 1000);
  EXPECT_EQ(a.size(), 100u);
  EXPECT_TRUE(std::equal(a.begin(), a.begin() + 40, b.begin()));
  EXPECT_FALSE(std::equal(a.begin() + 40, a.begin() + 50, b.begin() + 40));
  const auto c = PromptOf(other, 2, 7, 1000);
  EXPECT_FALSE(std::equal(a.begin(), a.begin() + 10, c.begin()));
  for (const int32_t token : a) EXPECT_TRUE(token >= 0 && token < 1000);
  EXPECT_EQ(PromptOf(one, 0, 7, 1000), a);
  EXPECT_NE(PromptOf(one, 0, 8, 1000), a);
}

TEST(TraceFuzzSeeds, NeitherTheyNorDamagedCopiesDoHarm) {
  EXPECT_GE(testing::ReplaySeeds("trace", 100, FuzzTrace), 1);
  EXPECT_TRUE(ParseTrace(testing::ReadAll(testing::SeedPath("trace", "three.jsonl")), "t").ok());
}

}  // namespace
}  // namespace lockstep
