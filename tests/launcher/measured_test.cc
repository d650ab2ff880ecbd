#include "launcher/measured.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lockstep {
namespace {

using testing::HasSubstr;

constexpr char kBench[] =
    R"({"benchmark": "decode", "ranks": 2, "read_gb_per_s": {"before": 30, "after": 34},
"peak_gop_per_s": 600})";
constexpr char kDoctor[] =
    R"({"ranks": [{"memory_bytes": 214748364800}, {"memory_bytes": 107374182400},
{"memory_bytes": 214748364800}], "collective": "rdma", "links": [
{"transport": "tcp", "p50_us": 90, "gb_per_s": 1},
{"transport": "rdma", "p50_us": 4, "gb_per_s": 9},
{"transport": "rdma", "p50_us": 5, "gb_per_s": 11},
{"transport": "rdma", "p50_us": 3, "gb_per_s": 8}]})";

std::string Line(std::string text) {
  std::erase(text, '\n');
  return text + "\n";
}

StatusOr<Measured> Parse(const std::string& text) { return ParseMeasured(text, "m.json"); }

TEST(Measured, BenchSaysWhatARankReadsAndComputes) {
  const StatusOr<Measured> measured = Parse(Line(kBench));
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_EQ(measured->ranks, 2);
  EXPECT_EQ(measured->gb_per_s.value, 16);
  EXPECT_EQ(measured->tops.value, 0.3);
  EXPECT_THAT(measured->gb_per_s.source, HasSubstr("lockstep bench"));
  EXPECT_FALSE(measured->link.latency_us.known());
}

TEST(Measured, DoctorSaysWhatTheSlowestLinkOfItsChoiceAndTheSmallestNodeGive) {
  const StatusOr<Measured> measured = Parse(Line(kBench) + "\n" + Line(kDoctor));
  ASSERT_TRUE(measured.ok()) << measured.status();
  EXPECT_EQ(measured->ranks, 3);
  EXPECT_EQ(measured->gb_per_s.value, 16);
  EXPECT_EQ(measured->link.name, "rdma");
  EXPECT_EQ(measured->link.latency_us.value, 5);
  EXPECT_EQ(measured->link.gb_per_s.value, 8);
  EXPECT_NEAR(measured->memory_gib.value, 94, 1e-9);
}

TEST(Measured, KeepsTheTestsOfBench) {
  const auto line = [](const char* mode) {
    return Line(R"({"ranks": 2, "read_gb_per_s": {"before": 30, "after": 34}, "peak_gop_per_s": 600,
"prefill_chunk": 64, "mode": ")" +
                std::string(mode) + R"(", "tests": [
{"test": "decode", "tokens": 32, "context": 0, "batch": 4, "tokens_per_second": {"median": 50}},
{"test": "prefill", "tokens": 128, "tokens_per_second": {"median": 900}},
{"test": "prefill", "tokens": 128, "added_latency_us": 50,
 "tokens_per_second": {"median": 700}}]})");
  };
  const StatusOr<Measured> measured = Parse(line("tensor") + line("pipeline"));
  ASSERT_TRUE(measured.ok()) << measured.status();
  ASSERT_EQ(measured->tests.size(), 2u);
  const MeasuredTest &decode = measured->tests[0], &prefill = measured->tests[1];
  EXPECT_TRUE(decode.decode);
  EXPECT_EQ(decode.ranks, 2);
  EXPECT_EQ(decode.context, 0);
  EXPECT_EQ(decode.batch, 4);
  EXPECT_EQ(decode.tokens_per_s, 50);
  EXPECT_FALSE(prefill.decode);
  EXPECT_EQ(prefill.tokens, 128);
  EXPECT_EQ(prefill.chunk, 64);
  EXPECT_THAT(MessageOf(Parse(Line(R"({"ranks": 2, "read_gb_per_s": {"before": 1, "after": 1},
"peak_gop_per_s": 1, "tests": [{"test": "decode"}]})"))
                            .status()),
              HasSubstr("m.json:1"));
}

TEST(Measured, ReplacesWhatWasPublishedAndNothingElse) {
  planner::Hardware hardware;
  planner::Engine engine;
  engine.of_measured = true;
  hardware.node.gb_per_s = {273, "datasheet"};
  hardware.node.memory_gib = {110, "datasheet"};
  hardware.link.latency_us = {9, "datasheet"};
  const StatusOr<Measured> measured = Parse(Line(kBench));
  ASSERT_TRUE(measured.ok());
  Apply(*measured, engine, &hardware);
  EXPECT_EQ(hardware.node.gb_per_s.value, 16);
  EXPECT_EQ(hardware.node.memory_gib.value, 110);
  EXPECT_EQ(hardware.link.latency_us.value, 9);
}

TEST(Measured, SharesOfDatasheetsKeepTheDatasheetsFigures) {
  planner::Hardware hardware;
  hardware.node.gb_per_s = {273, "datasheet"};
  planner::Engine engine;
  engine.name = "other";
  Apply(*Parse(Line(kBench)), engine, &hardware);
  EXPECT_EQ(hardware.node.gb_per_s.value, 273);
  EXPECT_THAT(hardware.node.gb_per_s.source, HasSubstr("16 measured"));
  EXPECT_EQ(hardware.node.tops.value, 0.3);  // nothing else was known
}

TEST(Measured, RanksOfOneHostDivideItsMemory) {
  const auto doctor = [](const char* second) {
    return Line(R"({"ranks": [{"memory_bytes": 107374182400, "host": "a"},
{"memory_bytes": 107374182400, )" +
                std::string(second) + R"(}], "collective": "tcp", "links": []})");
  };
  const StatusOr<Measured> one = Parse(doctor(R"("host": "a")"));
  const StatusOr<Measured> two = Parse(doctor(R"("host": "b")"));
  const StatusOr<Measured> unknown = Parse(doctor(R"("cpus": 1)"));
  ASSERT_TRUE(one.ok() && two.ok() && unknown.ok());
  EXPECT_NEAR(one->memory_gib.value, 47, 1e-9);
  EXPECT_NEAR(two->memory_gib.value, 94, 1e-9);
  planner::Hardware hardware;
  hardware.node.memory_gib = {60, "test"};
  Apply(*unknown, planner::Engine(), &hardware);
  EXPECT_EQ(hardware.node.memory_gib.value, 60);
  Apply(*two, planner::Engine(), &hardware);
  EXPECT_NEAR(hardware.node.memory_gib.value, 94, 1e-9);
}

TEST(Measured, OtherLinesAreRefusedWithTheirNumber) {
  const auto error = [](const std::string& text) {
    const StatusOr<Measured> measured = Parse(text);
    EXPECT_FALSE(measured.ok()) << text;
    return MessageOf(measured.status());
  };
  EXPECT_THAT(error(Line(kBench) + "{\"a\": 1}\n"), HasSubstr("m.json:2: not what doctor"));
  EXPECT_THAT(error("no json\n"), HasSubstr("m.json:1"));
  for (const char* bad :
       {R"({"ranks": 0, "read_gb_per_s": {"before": 1, "after": 1}, "peak_gop_per_s": 1})",
        R"({"ranks": 2, "read_gb_per_s": {"before": -1, "after": 1}, "peak_gop_per_s": 1})",
        R"({"ranks": 2, "read_gb_per_s": {"before": "x", "after": 1}, "peak_gop_per_s": 1})",
        R"({"ranks": 9e9, "read_gb_per_s": {"before": 1, "after": 1}, "peak_gop_per_s": 1})",
        R"({"ranks": 2, "read_gb_per_s": [], "peak_gop_per_s": 1})",
        R"({"links": [{}], "ranks": [], "collective": "tcp"})",
        R"({"links": [], "ranks": 3, "collective": "tcp"})"})
    EXPECT_THAT(error(bad), HasSubstr("not as the command printed it")) << bad;
}

}  // namespace
}  // namespace lockstep
