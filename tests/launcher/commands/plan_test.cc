// `lockstep plan` as a user starts it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "tests/launcher/program.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Json = nlohmann::json;

// What it prints.
std::string TextOf(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "plan");
  Program plan(arguments);
  EXPECT_EQ(plan.Wait(), 0) << plan.error();
  return plan.out();
}

Json PlanJson(std::vector<std::string> arguments) {
  arguments.emplace_back("--json");
  return Json::parse(TextOf(std::move(arguments)), nullptr, false);
}

std::string ErrorOf(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "plan");
  Program plan(arguments);
  EXPECT_EQ(plan.Wait(), 2);
  EXPECT_EQ(plan.out(), "");
  return plan.error();
}

std::string Write(const std::string& name, const std::string& text) {
  const std::string path = ::testing::TempDir() + "/" + name;
  std::ofstream(path) << text;
  return path;
}

constexpr char kMeasured[] =
    R"({"ranks": 1, "read_gb_per_s": {"before": 20, "after": 20}, "peak_gop_per_s": 500})";

TEST(PlanCommand, SaysOfEachWayWhatAProgramWantsToKnow) {
  const Json plan = PlanJson({"--hardware", "dgx-spark-2", "--model", "GLM-4.7", "--weights",
                              "q4_k_m", "--users", "3", "--engine", "sglang"});
  ASSERT_TRUE(plan.is_object());
  EXPECT_EQ(plan["hardware"]["nodes"], 2);
  EXPECT_THAT(plan["hardware"]["gb_per_s"]["source"].get<std::string>(), HasSubstr("NVIDIA"));
  EXPECT_EQ(plan["single"]["fits"], false);
  EXPECT_THAT(plan["single"]["reason"].get<std::string>(), HasSubstr("more memory"));
  EXPECT_TRUE(plan["single"]["decode_tokens_per_s"].is_null());
  for (const char* name : {"pipeline", "tensor"}) {
    const Json& way = plan[name];
    EXPECT_EQ(way["fits"], true) << name;
    const Json& bytes = way["bytes_per_rank"];
    EXPECT_EQ(bytes["total"].get<uint64_t>(), bytes["weights"].get<uint64_t>() +
                                                  bytes["kv"].get<uint64_t>() +
                                                  bytes["scratch"].get<uint64_t>());
    EXPECT_EQ(way["ranks"].size(), 2u);
    EXPECT_GE(way["max_context"].get<int64_t>(), 8192);
    EXPECT_EQ(way["decode_by_users"].size(), 3u);
    EXPECT_EQ(way["decode_by_users"][0]["tokens_per_s"], way["decode_tokens_per_s"]);
    for (const char* number :
         {"decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s", "joules_per_token"})
      EXPECT_GT(way[number].get<double>(), 0) << name << " " << number;
    EXPECT_EQ(way["limited_by"], "memory bandwidth");
    EXPECT_EQ(way["cost"]["purchase_usd"], 8000);
    EXPECT_GT(way["cost"]["months_to_break_even"].get<double>(), 1);
    EXPECT_EQ(way["cost"]["cloud_usd_per_month"]["value"], 6000);
  }
}

TEST(PlanCommand, ATableSaysTheSameToPeople) {
  const std::string table =
      TextOf({"--hardware", "h100-8", "--model", "GLM-4.7", "--weights", "bf16"});
  EXPECT_THAT(table, AllOf(HasSubstr("tensor: does not fit: rank 0 needs"), HasSubstr("76 GiB")));
  EXPECT_THAT(TextOf({"--hardware", "h200-8", "--model", "GLM-4.7", "--weights", "bf16"}),
              AllOf(HasSubstr("tensor: fits"), HasSubstr("limited by exchange")));
}

TEST(PlanCommand, FilesAreCountedAsTheyAre) {
  const std::string model = SourceFile("models/tiny");
  const Json plan = PlanJson({"--hardware", "dgx-spark-2", "--model", model, "--shares", "3,1"});
  Program inspect({"inspect", model, "--json"});
  ASSERT_EQ(inspect.Wait(), 0);
  const Json whole = Json::parse(inspect.out());
  EXPECT_EQ(plan["file_bytes"], whole["bytes"]);
  const Json& ranks = plan["tensor"]["ranks"];
  EXPECT_GT(ranks[0]["weights"].get<double>(), 2 * ranks[1]["weights"].get<double>());
}

TEST(PlanCommand, MeasuredFiguresStandAboveThePublished) {
  const std::string measured = Write("plan_test_measured.json", kMeasured);
  const std::string node = Write("plan_test_node.yaml", "node: {memory-gib: 60, gb-per-s: 273}\n");
  const std::vector<std::string> flash = {
      "--model", "GLM-4.7-Flash", "--weights", "q8_0", "--hardware", node, "--context", "100"};
  std::vector<std::string> with = flash;
  with.insert(with.end(), {"--measured", measured});
  const Json before = PlanJson(flash), after = PlanJson(with);
  EXPECT_EQ(after["hardware"]["gb_per_s"]["value"], 20);
  const double ratio = before["single"]["decode_tokens_per_s"].get<double>() /
                       after["single"]["decode_tokens_per_s"].get<double>();
  EXPECT_NEAR(ratio, 273.0 / 20, 1e-6);
  EXPECT_TRUE(before["single"]["prefill_tokens_per_s"].is_null());
  EXPECT_TRUE(before["single"]["ttft_s"].is_null());
  EXPECT_THAT(before["single"]["prefill_reason"].get<std::string>(), HasSubstr("'tops'"));
  EXPECT_GT(after["single"]["prefill_tokens_per_s"].get<double>(), 0);
  // Without hardware: nodes like this machine.
  const Json here = PlanJson({"--model", SourceFile("models/tiny"), "--measured", measured});
  EXPECT_EQ(here["hardware"]["family"], "cpu");
  EXPECT_EQ(here["single"]["fits"], true);
}

TEST(PlanCommand, WhatIsNotSaidIsAsTheEngineDoesIt) {
  std::vector<std::string> question = {"--model", "GLM-4.7",    "--weights",
                                       "q4_k_m",  "--hardware", "dgx-spark-2"};
  const Json usual = PlanJson(question);
  EXPECT_EQ(usual["engine"]["name"], "dgpp");
  EXPECT_EQ(usual["kv_cache_dtype"], "bf16");
  EXPECT_EQ(usual["wire_bytes"], 2);
  EXPECT_EQ(usual["prefill_chunk"], 2048);
  question.insert(question.end(),
                  {"--wire", "f32", "--prefill-chunk", "256", "--kv-cache-dtype", "f32"});
  const Json said = PlanJson(question);
  EXPECT_EQ(said["kv_cache_dtype"], "f32");
  EXPECT_EQ(said["wire_bytes"], 4);
  EXPECT_EQ(said["prefill_chunk"], 256);
  // A way that the engine lacks.
  EXPECT_EQ(usual["tensor"]["measured"], true);
  EXPECT_EQ(usual["pipeline"]["measured"], false);
  EXPECT_GT(usual["pipeline"]["decode_tokens_per_s"].get<double>(), 0);
  EXPECT_THAT(usual["pipeline"]["reason"].get<std::string>(), HasSubstr("does not divide"));
}

TEST(PlanCommand, AClusterYamlSaysHowManyNodesThereAre) {
  const std::string config = Write("plan_test_cluster.yaml",
                                   "model: GLM-4.7\nweights: fp8\nhardware: dgx-spark-1\n"
                                   "nodes:\n  - address: a\n  - address: b\n  - address: c\n");
  EXPECT_THAT(ErrorOf({"--config", config}), HasSubstr("lockstep doctor"));
  const Json plan = PlanJson({"--config", config, "--hardware", "dgx-spark-2"});
  EXPECT_EQ(plan["hardware"]["nodes"], 3);
  EXPECT_EQ(plan["tensor"]["ranks"].size(), 3u);
  EXPECT_EQ(plan["hardware"]["price_usd"]["value"], 12000);
}

TEST(PlanCommand, WrongQuestionsAreRefusedWithAnAnswer) {
  const std::string tiny = SourceFile("models/tiny");
  EXPECT_THAT(ErrorOf({"--hardware", "dgx-spark-2"}), HasSubstr("--model is needed"));
  EXPECT_THAT(ErrorOf({"--model", tiny}), HasSubstr("--hardware is needed"));
  EXPECT_THAT(ErrorOf({"--model", tiny, "--hardware", "dgx"}), HasSubstr("the presets are"));
  EXPECT_THAT(ErrorOf({"--model", "GLM-4.7", "--hardware", "dgx-spark-2"}),
              HasSubstr("needs --weights"));
  EXPECT_THAT(ErrorOf({"--model", "GLM-5", "--weights", "fp8", "--hardware", "dgx-spark-2"}),
              HasSubstr("known are GLM-4.7"));
  EXPECT_THAT(ErrorOf({"--model", tiny, "--weights", "fp8", "--hardware", "dgx-spark-2"}),
              HasSubstr("models without files"));
  EXPECT_THAT(ErrorOf({"--model", tiny, "--hardware", "dgx-spark-2", "--engine", "x"}),
              HasSubstr("sglang"));
  EXPECT_THAT(ErrorOf({"--model", tiny, "--hardware", "dgx-spark-2", "--context", "10",
                       "--prompt-tokens", "11"}),
              HasSubstr("at most --context 10"));
  EXPECT_THAT(ErrorOf({"--model", tiny, "--hardware", "dgx-spark-2", "--measured", "/none"}),
              HasSubstr("--measured: /none"));
  EXPECT_THAT(ErrorOf({"--model", tiny, "--hardware", "dgx-spark-2", "--shares", "1,2,3"}),
              HasSubstr("3 shares"));
}

}  // namespace
}  // namespace lockstep
