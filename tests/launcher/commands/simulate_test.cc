// `lockstep simulate` as a user starts it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "launcher/trace.h"
#include "tests/launcher/program.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

// GLM-4.7 on two Sparks, for a while.
std::vector<std::string> Sparks(std::vector<std::string> more = {}) {
  std::vector<std::string> all = {
      "simulate", "--hardware", "dgx-spark-2", "--engine",        "dgpp", "--model",
      "GLM-4.7",  "--weights",  "q4_k_m",      "--max-model-len", "4096", "--max-num-seqs",
      "4",        "--rate",     "0.02",        "--duration-s",    "600"};
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

std::string TextOf(const std::vector<std::string>& arguments) {
  Program simulate(arguments);
  EXPECT_EQ(simulate.Wait(), 0) << simulate.error();
  return simulate.out();
}

Json JsonOf(std::vector<std::string> arguments) {
  arguments.emplace_back("--json");
  return Json::parse(TextOf(arguments), nullptr, false);
}

std::string ErrorOf(const std::vector<std::string>& arguments) {
  Program simulate(arguments);
  EXPECT_EQ(simulate.Wait(), 2);
  EXPECT_EQ(simulate.out(), "");
  return simulate.error();
}

TEST(SimulateCommand, SaysWhatAServiceWouldGive) {
  const Json said = JsonOf(Sparks());
  ASSERT_TRUE(said.is_object());
  EXPECT_EQ(said["requests"], said["completed"]);
  EXPECT_GT(said["requests"], 3);
  EXPECT_EQ(said["cluster"]["exchanges"], "messages");
  EXPECT_GT(said["messages"], 1000);
  for (const char* name : {"ttft_s", "inter_token_s", "queue_s"}) {
    EXPECT_LE(said[name]["p50"], said[name]["p90"]) << name;
    EXPECT_LE(said[name]["p90"], said[name]["p99"]) << name;
  }
  EXPECT_EQ(said["ttft_s"]["count"], said["requests"]);
  EXPECT_EQ(said["inter_token_s"]["count"].get<int64_t>(),
            said["output_tokens"].get<int64_t>() - said["completed"].get<int64_t>());
  EXPECT_GT(said["tokens_per_s"], 0);
  EXPECT_EQ(said["by_replica"]["utilisation"]["min"], said["utilisation"]);
}

TEST(SimulateCommand, TheSameSeedGivesTheSameBytes) {
  const std::string once = TextOf(Sparks({"--json"}));
  EXPECT_EQ(TextOf(Sparks({"--json"})), once);
  EXPECT_EQ(TextOf(Sparks()), TextOf(Sparks()));
  const Json other = JsonOf(Sparks({"--seed", "2"}));
  EXPECT_NE(other["history"], Json::parse(once)["history"]);
}

TEST(SimulateCommand, AFleetHasAFigureOfEachReplica) {
  const std::vector<std::string> fleet = Sparks({"--replicas", "5", "--rate", "0.1"});
  const Json said = JsonOf(fleet);
  EXPECT_EQ(said["cluster"]["replicas"], 5);
  EXPECT_EQ(said["cluster"]["exchanges"], "messages, once for each number of rows");
  EXPECT_LE(said["by_replica"]["utilisation"]["min"], said["by_replica"]["utilisation"]["max"]);
  EXPECT_THAT(TextOf(fleet), HasSubstr("of a replica"));
}

TEST(SimulateCommand, TheTraceThatWasMadeGivesTheSameHistory) {
  const std::string path = ::testing::TempDir() + "/made.jsonl";
  const Json made = JsonOf(Sparks({"--out", path}));
  const auto trace = ReadTrace(path);
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ(trace->size(), made["requests"].get<size_t>());
  EXPECT_EQ(JsonOf(Sparks({"--trace", path}))["history"], made["history"]);
}

TEST(SimulateCommand, SaysWhatItCannot) {
  EXPECT_THAT(ErrorOf(Sparks({"--mode", "pipeline"})), HasSubstr("no pipelines"));
  EXPECT_THAT(ErrorOf(Sparks({"--trace", "/none"})), HasSubstr("--trace"));
  EXPECT_THAT(ErrorOf(Sparks({"--prefix-groups", "3"})), HasSubstr("go together"));
  EXPECT_THAT(ErrorOf(Sparks({"--ranks", "1"})), HasSubstr("needs"));
  EXPECT_THAT(ErrorOf(Sparks({"--rate", "1e6", "--duration-s", "1e6"})), HasSubstr("lower one"));
  const std::string path = ::testing::TempDir() + "/bad.jsonl";
  std::ofstream(path) << "{\"at_s\": 0}\n";
  EXPECT_THAT(ErrorOf(Sparks({"--trace", path})), HasSubstr("bad.jsonl:1: 'prompt_tokens'"));
}

}  // namespace
}  // namespace lockstep
