// `lockstep bench` as a user starts it, on models/tiny.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launcher/cluster_yaml.h"
#include "runtime/base/file.h"
#include "tests/launcher/program.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;

Json BenchJson(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "bench");
  arguments.insert(arguments.end(), {"--json", "--log-level", "error", "--repeat", "2"});
  Program bench(arguments);
  EXPECT_EQ(bench.Wait(), 0) << bench.error();
  return Json::parse(bench.out(), nullptr, false);
}

std::string ErrorOf(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "bench");
  Program bench(arguments);
  EXPECT_EQ(bench.Wait(), 2);
  EXPECT_EQ(bench.out(), "");
  return bench.error();
}

// Every op, the exchange and the rest are the whole time.
void ExpectWholeTime(const Json& test, bool exchanges) {
  double share = 0;
  bool exchanged = false;
  for (const Json& time : test["times_of_rank_0"]) {
    share += time["share"].get<double>();
    exchanged = exchanged || time["op"] == "exchange";
  }
  EXPECT_NEAR(share, 1, 1e-6);
  EXPECT_EQ(exchanged, exchanges);
}

// Every product says what it reaches of rank 0's part of what all ranks reach; no other op does.
void ExpectShares(const Json& test, const char* share, const char* rate, double part_of_rank_0) {
  int products = 0;
  for (const Json& time : test["times_of_rank_0"]) {
    // Attention reads memory as products do, but does not compute with their instruction.
    const bool reads = time["op"] == "attention" && std::string(share) == "share_of_bandwidth";
    ASSERT_EQ(time.contains(share), time.contains("outputs") || reads) << time;
    if (!time.contains(share)) continue;
    ++products;
    EXPECT_NEAR(time[share].get<double>(), time[rate].get<double>() / part_of_rank_0, 1e-9);
  }
  EXPECT_GT(products, 0);
}

TEST(BenchDecode, SaysWhatATokenReadsAndWhereTheTimeGoes) {
  for (const int ranks : {1, 2}) {
    const Json json =
        BenchJson({"decode", "--model", SourceFile("models/tiny"), "--ranks", std::to_string(ranks),
                   "--threads", "1", "--tokens", "3,5", "--context", "20"});
    ASSERT_TRUE(json.is_object());
    ASSERT_EQ(json["tests"].size(), 2u);
    EXPECT_EQ(json["memory"].size(), static_cast<size_t>(ranks));
    EXPECT_GT(json["read_gb_per_s"]["before"], 0);
    EXPECT_GT(json["read_gb_per_s"]["after"], 0);
    const Json& test = json["tests"][1];
    EXPECT_EQ(test["tokens"], 5);
    EXPECT_EQ(test["tokens_per_second"]["samples"].size(), 2u);
    EXPECT_LE(test["tokens_per_second"]["min"], test["tokens_per_second"]["median"]);
    ExpectWholeTime(test, ranks > 1);
    // tiny keeps 4 layers of keys and values; positions 20 .. 24 read 21 .. 25 of them.
    const double per_position = json["memory"][0]["kv_bytes"].get<double>() * ranks / 32;
    EXPECT_NEAR(test["kv_bytes_per_token"].get<double>(), 23 * per_position, 1);
    // What the products really read is what the plan says, but for the rows of the embedding.
    double bytes = 0, cache = 0;
    for (const Json& rank : test["ranks"]) {
      for (const Json& op : rank["ops"]) {
        (op["outputs"] != 0 ? bytes : cache) += op["bytes"].get<double>();
      }
    }
    EXPECT_NEAR(cache / 10, test["kv_bytes_per_token"].get<double>(), 1);
    const double weights = test["weight_bytes_per_token"].get<double>();
    EXPECT_NEAR(bytes / 10, weights, 0.05 * weights);
    const double read = (json["read_gb_per_s"]["before"].get<double>() +
                         json["read_gb_per_s"]["after"].get<double>()) /
                        2;
    EXPECT_NEAR(test["share_of_bandwidth"].get<double>(), test["gb_per_s"].get<double>() / read,
                1e-9);
    ExpectShares(test, "share_of_bandwidth", "gb_per_s", read / ranks);
    // Rank 0's parts are its whole time; its clock stops with the one that the rate is of.
    const Json& parts = test["us_per_token"][0];
    const double us = parts["compute"].get<double>() + parts["exchange"].get<double>() +
                      parts["waiting"].get<double>() + parts["rest"].get<double>();
    const Json& rates = test["tokens_per_second"]["samples"];
    EXPECT_NEAR(us, (1e6 / rates[0].get<double>() + 1e6 / rates[1].get<double>()) / 2, 1e-3 * us);
  }
}

TEST(BenchPrefill, CountsTheOperationsOfAllRanks) {
  double alone = 0;
  for (const int ranks : {1, 2}) {
    const Json json = BenchJson({"prefill", "--model", SourceFile("models/tiny"), "--ranks",
                                 std::to_string(ranks), "--threads", "1", "--prompt-tokens", "40",
                                 "--prefill-chunk", "16"});
    ASSERT_TRUE(json.is_object());
    const Json& test = json["tests"][0];
    EXPECT_EQ(test["test"], "prefill");
    const double operations = test["operations_per_token"].get<double>();
    if (ranks == 1) alone = operations;
    // Ranks share the work; only the routers are computed by each.
    EXPECT_NEAR(operations, alone, 0.02 * alone);
    ExpectWholeTime(test, ranks > 1);
    ExpectShares(test, "share_of_peak", "gop_per_s", json["peak_gop_per_s"].get<double>() / ranks);
  }
}

// Decoding and prompts one after the other are what each is by itself: the same choices, in every
// division of the model, and times that add up.
TEST(BenchSteps, AreDecodesAndPromptsOfOneSession) {
  const std::vector<std::string> sizes = {
      "--model", SourceFile("models/tiny"), "--threads", "1", "--tokens", "3", "--prompt-tokens",
      "20",      "--prefill-chunk",         "16"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.end(), sizes.begin(), sizes.end());
    return BenchJson(more);
  };
  const Json decode = with({"decode"}), prefill = with({"prefill"});
  const std::vector<std::vector<std::string>> ways = {
      {},
      {"--ranks", "2"},
      {"--ranks", "2", "--mode", "pipeline"},
      {"--ranks", "4", "--mode", "pipeline", "--stages", "2"}};
  for (std::vector<std::string> way : ways) {
    way.insert(way.begin(), "steps");
    const Json steps = with(way);
    ASSERT_EQ(steps["tests"].size(), 2u);
    for (const auto& [test, alone] : {std::pair(steps["tests"][0], decode["tests"][0]),
                                      std::pair(steps["tests"][1], prefill["tests"][0])}) {
      EXPECT_EQ(test["test"], alone["test"]);
      EXPECT_EQ(test["best_tokens"].size(), test["test"] == "decode" ? 3u : 1u);
      for (size_t row = 0; row < test["best_tokens"].size(); ++row)
        EXPECT_EQ(test["best_tokens"][row]["token"], alone["best_tokens"][row]["token"]);
      for (const Json& rank : test["us_per_token"]) {
        EXPECT_GT(rank["compute"], 0);
        EXPECT_GE(rank["exchange"], 0);
        EXPECT_EQ(rank["waiting"] > 0, way.size() > 1);
      }
      EXPECT_EQ(test["wire_bytes_per_token"] > 0, way.size() > 1);
    }
  }
}

TEST(BenchKernels, MeasuresTheChosenFormatsAndRows) {
  const Json json =
      BenchJson({"kernels", "--formats", "q4_0,f16", "--rows", "1,3", "--threads", "1"});
  ASSERT_TRUE(json.is_object());
  ASSERT_EQ(json["results"].size(), 4u);
  EXPECT_EQ(json["results"][1]["rows"], 3);
  EXPECT_GT(json["results"][0]["gb_per_s"], 0);
  EXPECT_GT(json["peak_gop_per_s"], 0);
  EXPECT_GT(json["barrier_ns"], 0);
}

TEST(Bench, WrongQuestionsAreRefusedWithAnAnswer) {
  EXPECT_NE(ErrorOf({}).find("bench decode --model"), std::string::npos);
  EXPECT_NE(ErrorOf({"speed"}).find("kernels, collectives, decode, prefill"), std::string::npos);
  EXPECT_NE(ErrorOf({"kernels", "--formats", "q4"}).find("'q4' is not one of f32"),
            std::string::npos);
  EXPECT_NE(ErrorOf({"kernels", "--rows", "8,0"}).find("--rows: '0'"), std::string::npos);
  const std::string model = SourceFile("models/tiny");
  EXPECT_NE(ErrorOf({"decode", "--model", model, "--tokens", "1,,2"}).find("--tokens: ''"),
            std::string::npos);
  EXPECT_NE(ErrorOf({"prefill", "--model", model, "--prompt-tokens", "9999999"}).find("positions"),
            std::string::npos);
  EXPECT_NE(ErrorOf({"decode"}).find("--model"), std::string::npos);
}

TEST(BenchCollectives, MeasuresEverySizeOverEveryTransportBesideItsPingPong) {
  const Json rows = BenchJson({"collectives", "--ranks", "3", "--transports", "shm,tcp", "--sizes",
                               "4,40,1500000", "--gather-sum-bytes", "8"});
  ASSERT_EQ(rows.size(), 48u);
  size_t at = 0;
  for (const int64_t bytes : {4, 40, 1'500'000}) {
    for (const char* transport : {"shm", "tcp"}) {
      const char* taken = bytes == 4 ? "gather" : bytes == 40 ? "direct" : "two-step";
      for (const std::string algorithm :
           {"ping-pong", "gather", "gather, in slot", "direct", "direct, in slot", "two-step",
            "two-step, in slot", "any order"}) {
        const Json& row = rows[at++];
        EXPECT_EQ(row["transport"], transport);
        EXPECT_EQ(row["bytes"], bytes);
        EXPECT_EQ(row["algorithm"], algorithm);
        EXPECT_EQ(row["chosen"], algorithm == "ping-pong" || algorithm.starts_with(taken)) << row;
        EXPECT_EQ(row["ranks"], 3);
        EXPECT_EQ(row["dtype"], "float32");
        EXPECT_GE(row["reps"], 60);
        EXPECT_GT(row["p50_us"], 0);
        EXPECT_LE(row["p50_us"], row["p99_us"]);
        EXPECT_NEAR(row["gb_per_s"].get<double>(),
                    static_cast<double>(bytes) / row["p50_us"].get<double>() * 1e-3, 1e-9);
      }
    }
  }
}

TEST(BenchCollectives, UsesAndRecordsWhereTheSecondStepBegins) {
  const std::string path = testing::TempDir() + "/bench_test.yaml";
  std::ofstream(path) << "ranks: 2\ndirect-sum-bytes: 3\ngather-sum-bytes: 2\n";
  const Json rows = BenchJson(
      {"collectives", "--config", path, "--transports", "tcp", "--sizes", "4", "--record"});
  ASSERT_EQ(rows.size(), 6u);
  EXPECT_EQ(rows[1]["chosen"], false) << rows[1];
  EXPECT_EQ(rows[3]["chosen"], true) << rows[3];
  const StatusOr<ClusterFile> recorded = ReadClusterYaml(path);
  ASSERT_TRUE(recorded.ok()) << recorded.status();
  EXPECT_EQ(recorded->options.ranks, 2);
  // One size: always or never.
  const int64_t bytes = recorded->options.direct_sum_bytes;
  EXPECT_TRUE(bytes == 0 || bytes == int64_t{1} << 30) << bytes;
  EXPECT_EQ(recorded->options.gather_sum_bytes, 0) << "two ranks do without";
}

TEST(BenchCollectives, RefusesWhatItCannotMeasure) {
  // MPI_Allreduce knows no wire.
  const Json narrow = BenchJson(
      {"collectives", "--ranks", "2", "--transports", "mpi", "--sizes", "4096", "--dtype", "bf16"});
  ASSERT_EQ(narrow.size(), 5u);
  EXPECT_EQ(narrow[0]["dtype"], "bf16");
  EXPECT_EQ(narrow[3]["dtype"], "bf16");
  EXPECT_EQ(narrow[4]["dtype"], "float32");
  EXPECT_EQ(narrow[4]["algorithm"], "MPI_Allreduce");
  EXPECT_NE(ErrorOf({"collectives"}).find("two ranks at least"), std::string::npos);
  EXPECT_NE(ErrorOf({"collectives", "--sizes", "20,6"}).find("6 bytes"), std::string::npos);
  EXPECT_NE(ErrorOf({"collectives", "--transports", "tcp,smoke"}).find("'smoke'"),
            std::string::npos);
  EXPECT_NE(ErrorOf({"collectives", "--record"}).find("--config"), std::string::npos);
  const std::string config = SourceFile("configs/local-2.yaml");
  const auto recorded = [&](const char* flag, const char* value) {
    return ErrorOf({"collectives", "--record", "--config", config, flag, value});
  };
  EXPECT_NE(recorded("--transports", "tcp").find("add shm"), std::string::npos);
  EXPECT_NE(recorded("--dtype", "int8").find("which is f32"), std::string::npos);
}

}  // namespace
}  // namespace lockstep
