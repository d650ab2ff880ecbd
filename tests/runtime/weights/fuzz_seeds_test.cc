// The seeds of tests/fuzz, and damaged copies of them, through what the fuzzers run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/fuzz/mlx_config_fuzz_body.h"
#include "tests/fuzz/replay.h"
#include "tests/fuzz/safetensors_index_fuzz_body.h"
#include "tests/runtime/base/gguf_fuzz_body.h"
#include "tests/runtime/weights/shard_fuzz_body.h"

namespace lockstep {
namespace {

using testing::ReplaySeeds;
using testing::SeedPath;

constexpr int kDamagedCopies = 200;

struct Target {
  const char* name;
  void (*run)(std::string_view data);
};
void PrintTo(const Target& target, std::ostream* out) { *out << target.name; }

void FuzzSafetensorsHeader(std::string_view text) {
  (void)ParseSafetensorsHeader(text, 8 + text.size() + 4096, "fuzz.safetensors");
}

constexpr Target kTargets[] = {
    {"safetensors", FuzzSafetensorsHeader},
    {"safetensors_index", FuzzSafetensorsIndex},
    {"gguf", FuzzGguf},
    {"mlx_config", [](std::string_view data) { (void)FuzzMlxConfig(data); }},
    {"shard_file", FuzzShardHeader}};

class FuzzSeeds : public ::testing::TestWithParam<Target> {};

TEST_P(FuzzSeeds, NeitherTheyNorDamagedCopiesDoHarm) {
  EXPECT_GE(ReplaySeeds(GetParam().name, kDamagedCopies, GetParam().run), 5);
}

INSTANTIATE_TEST_SUITE_P(Targets, FuzzSeeds, ::testing::ValuesIn(kTargets),
                         [](const auto& target) { return std::string(target.param.name); });

// Otherwise a fuzzer starts from nothing but refusals.
TEST(FuzzSeedsTest, SoundSeedsAreAccepted) {
  for (const char* name : {"all_kinds", "all_types", "split", "aligned", "tokenizer"}) {
    const std::string seed = testing::ReadAll(SeedPath("gguf", name));
    Gguf gguf;
    bool more = false;
    EXPECT_TRUE(
        ParseGgufBeginning(seed.substr(1), seed.size() - 1 + 255 * 512, name, &gguf, &more).ok())
        << name;
    EXPECT_FALSE(more) << name;
  }
  for (const char* name : {"sound", "empty_map", "nested"}) {
    const auto files = ParseSafetensorsIndex(testing::ReadAll(SeedPath("safetensors_index", name)),
                                             kSafetensorsIndex);
    EXPECT_TRUE(files.ok()) << name << ": " << files.status();
  }
  for (const auto& entry : std::filesystem::directory_iterator(SeedPath("shard_file"))) {
    const std::string seed = testing::ReadAll(entry.path().string());
    const auto header = ParseShardHeader(seed, kShardPreambleBytes + seed.size() + 65536, "seed");
    EXPECT_TRUE(header.ok()) << entry.path() << ": " << header.status();
  }
  for (const auto& entry : std::filesystem::directory_iterator(SeedPath("mlx_config"))) {
    const std::string name = entry.path().filename().string();
    if (name == "wrong_mode" || name == "huge_sizes") continue;
    EXPECT_EQ(FuzzMlxConfig(testing::ReadAll(entry.path().string())), MlxConfigOutcome::kRead)
        << name;
  }
}

}  // namespace
}  // namespace lockstep
