#include "launcher/mode_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/fuzz/mode_report_fuzz_body.h"
#include "tests/fuzz/replay.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;

Json Sound() { return Json::parse(testing::ReadAll(testing::SeedPath("mode_report", "sound"))); }

bool Accepted(const Json& json) { return ParseModeReport(json.dump()).ok(); }

TEST(ModeReport, HasTheFigures) {
  const ModeReport report = ParseModeReport(Sound().dump()).value();
  EXPECT_EQ(report.kernels, "cpu/avx2+q8");
  EXPECT_EQ(report.gb_per_s, 10.75);
  ASSERT_EQ(report.tests.size(), 2u);
  const ModeTest& test = report.tests[1];
  EXPECT_EQ(test.test, "prefill");
  EXPECT_EQ(test.added_latency_us, 50);
  EXPECT_EQ(test.tokens_per_s, std::vector<double>({9.5, 9.25}));
  EXPECT_EQ(test.share, 0.5);
  EXPECT_EQ(test.wire_bytes, 40960);
  EXPECT_EQ(test.ranks[0].waiting, 10);
  EXPECT_EQ(test.best[0].token, 17);
}

TEST(ModeReport, BytesMayBeUncounted) {
  Json json = Sound();
  json["tests"][0].erase("wire_bytes_per_token");
  const ModeReport report = ParseModeReport(json.dump()).value();
  EXPECT_FALSE(report.tests[0].wire_bytes.has_value());
}

TEST(ModeReport, WhatCannotBeIsRefused) {
  EXPECT_TRUE(Accepted(Sound()));
  for (const char* path : {"/threads", "/tests", "/tests/0/tokens", "/tests/0/us_per_token/0/rest",
                           "/tests/0/tokens_per_second/samples", "/tests/1/share_of_peak",
                           "/tests/0/best_tokens/0/token", "/kernels", "/logit_error"}) {
    const Json::json_pointer at(path);
    for (const Json& wrong : {Json(-1), Json("x"), Json(1e300), Json::array(), Json()}) {
      Json json = Sound();
      if (at.to_string() == "/kernels" && wrong.is_string()) continue;
      json[at] = wrong;
      EXPECT_FALSE(Accepted(json)) << path << " " << wrong;
    }
  }
  EXPECT_FALSE(ParseModeReport("").ok());
  EXPECT_FALSE(ParseModeReport(std::string(200'000, '[')).ok());
}

TEST(ModeReportFuzzSeeds, NeitherTheyNorDamagedCopiesDoHarm) {
  EXPECT_GE(testing::ReplaySeeds("mode_report", 200, FuzzModeReport), 3);
}

}  // namespace
}  // namespace lockstep
