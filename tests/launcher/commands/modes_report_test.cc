// What bench modes makes of its turns' figures.
#include "launcher/commands/modes_report.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

ModeTest TestOf(double rate, std::vector<BestToken> best, int64_t latency_us = 0) {
  ModeTest test;
  test.test = "decode";
  test.tokens = 8;
  test.added_latency_us = latency_us;
  test.tokens_per_s = {rate};
  test.share = rate / 100;
  test.wire_bytes = 10 * rate;
  test.ranks = {{rate, 2, 3, 4}};
  test.best = std::move(best);
  return test;
}

ModeReport ReportOf(std::vector<ModeTest> tests, double logit_error = 0.01) {
  return {.kernels = "cpu",
          .threads = 1,
          .gb_per_s = 9,
          .logit_error = logit_error,
          .tests = std::move(tests)};
}

ModesReport Report() {
  ModesReport report = {"tiny", "this machine", 3, {}};
  report.modes.push_back({"single", 1, {}, ""});
  report.modes.push_back({"tensor/shm", 2, {}, ""});
  for (const double rate : {10.0, 12.0, 30.0}) {
    report.modes[0].rounds.push_back(ReportOf({TestOf(rate, {{5, 1}, {6, 1}})}));
    report.modes[1].rounds.push_back(ReportOf({TestOf(2 * rate, {{5, 1}, {6, 1}})}));
  }
  return report;
}

TEST(Modes, MediansAreOverRoundsAndSplitsAreMeans) {
  const ModesReport report = Report();
  const Json all = ModesToJson(report, *CompareTokens(report.modes));
  const Json& test = all["modes"][1]["tests"][0];
  EXPECT_EQ(test["tokens_per_second"]["median"], 24);
  EXPECT_EQ(test["tokens_per_second"]["min"], 20);
  EXPECT_EQ(test["tokens_per_second"]["max"], 60);
  EXPECT_NEAR(test["us_per_token"][0]["compute"].get<double>(), 104.0 / 3, 1e-9);
  EXPECT_NEAR(test["wire_bytes_per_token"].get<double>(), 1040.0 / 3, 1e-9);
  EXPECT_FALSE(all.contains("note"));
}

TEST(Modes, EqualTokensAreCountedInAllRoundsButTheFirstOne) {
  const ModesReport report = Report();
  const TokenComparison tokens = CompareTokens(report.modes).value();
  EXPECT_EQ(tokens.compared, 2 * 5);  // two rounds more of single, three of tensor
  EXPECT_TRUE(tokens.differences.empty());
  EXPECT_TRUE(VerdictOf(report, tokens).ok());
}

TEST(Modes, AnotherTokenIsAFaultUnlessTheChoiceWasClose) {
  // Neither may be sure of its choice.
  for (const auto& [margin, reference] :
       {std::pair{0.019, 0.015}, {0.021, 0.015}, {0.015, 0.021}}) {
    ModesReport report = Report();
    for (ModeRuns& mode : report.modes) {
      for (ModeReport& round : mode.rounds) round.tests[0].best[1].margin = reference;
    }
    report.modes[1].rounds[2].tests[0].best[1] = {9, margin};
    const TokenComparison tokens = CompareTokens(report.modes).value();
    ASSERT_EQ(tokens.differences.size(), 1u);
    EXPECT_EQ(tokens.differences[0].reference, 6);
    EXPECT_EQ(tokens.differences[0].allowed, 0.02);
    const Status verdict = VerdictOf(report, tokens);
    EXPECT_EQ(verdict.ok(), margin < 0.02 && reference < 0.02);
    if (!verdict.ok()) {
      EXPECT_NE(MessageOf(verdict).find("tensor/shm, 2 ranks does not compute what single"),
                std::string::npos)
          << verdict;
    }
    EXPECT_EQ(ModesToJson(report, tokens)["tokens"]["equal"], 9);
  }
}

TEST(Modes, AnotherNumberOfTokensIsAnError) {
  ModesReport report = Report();
  report.modes[1].rounds[0].tests[0].best.pop_back();
  EXPECT_FALSE(CompareTokens(report.modes).ok());
}

TEST(Modes, WhatWasNotMeasuredIsNamedAndNotCompared) {
  ModesReport report = Report();
  report.modes[0].rounds.clear();
  report.modes[0].refused = "needs 400 GB";
  const TokenComparison tokens = CompareTokens(report.modes).value();
  EXPECT_EQ(tokens.reference, "tensor/shm, 2 ranks");
  const Status verdict = VerdictOf(report, tokens);
  EXPECT_NE(MessageOf(verdict).find("single: needs 400 GB"), std::string::npos) << verdict;
  EXPECT_EQ(ModesToJson(report, tokens)["modes"][0]["refused"], "needs 400 GB");
}

size_t Occurrences(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(ModesChart, HasAPointForEveryModeAndLatencyAndSaysThatItIsAdded) {
  ModesReport report = Report();
  for (ModeRuns& mode : report.modes) {
    for (ModeReport& round : mode.rounds) round.tests.push_back(TestOf(5, {{5, 1}, {6, 1}}, 50));
  }
  const std::string svg = DrawModes(report);
  EXPECT_EQ(Occurrences(svg, "<title>"), 4u);
  EXPECT_NE(svg.find("<title>tensor/shm, 0: 24.00 (20.00 .. 60.00)</title>"), std::string::npos);
  EXPECT_NE(svg.find("<title>single, 50: 5.00 (5.00 .. 5.00)</title>"), std::string::npos);
  EXPECT_NE(svg.find("Latency is ADDED"), std::string::npos);
  EXPECT_NE(ModesToJson(report, {})["note"].get<std::string>().find("ADDED"), std::string::npos);
}

TEST(ModesChart, StandsOverRanksWhereThereAreSeveralNumbers) {
  ModesReport report = Report();
  report.modes.push_back(report.modes[1]);
  report.modes[2].ranks = 4;
  const std::string svg = DrawModes(report);
  EXPECT_EQ(Occurrences(svg, "<title>"), 3u);
  EXPECT_NE(svg.find("<title>tensor/shm, 4:"), std::string::npos);
  EXPECT_NE(svg.find("<title>single, 1:"), std::string::npos);
}

TEST(Charts, WriteAnyTextAsTextAndRoundUp) {
  const std::string svg = DrawCharts("<a> & \x01\xff", {}, {});
  EXPECT_NE(svg.find("&lt;a&gt; &amp; ??"), std::string::npos);
  EXPECT_EQ(RoundUp(0), 1);
  EXPECT_EQ(RoundUp(1), 1);
  EXPECT_EQ(RoundUp(2.1), 2.5);
  EXPECT_EQ(RoundUp(51), 100);
  EXPECT_EQ(RoundUp(0.03), 0.05);
}

}  // namespace
}  // namespace lockstep
