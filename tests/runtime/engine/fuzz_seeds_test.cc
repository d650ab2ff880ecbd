// The seeds of the fuzz targets that read a whole model, weights and text, and damaged copies of
// them, through what the fuzzers run.
#include <gtest/gtest.h>

#include <filesystem>
#include <string>

#include "tests/fuzz/gguf_model_fuzz_body.h"
#include "tests/fuzz/model_text_fuzz_body.h"
#include "tests/fuzz/replay.h"

namespace lockstep {
namespace {

using testing::ReadAll;
using testing::ReplaySeeds;
using testing::SeedPath;
using testing::SourcePath;

constexpr int kDamagedCopies = 200;

void RunGgufModel(std::string_view data) { (void)FuzzGgufModel(data); }

TEST(ModelFuzzSeedsTest, NeitherTheyNorDamagedCopiesDoHarm) {
  EXPECT_GE(ReplaySeeds("gguf_model", kDamagedCopies, RunGgufModel), 2);
  EXPECT_GE(ReplaySeeds("gguf", kDamagedCopies, RunGgufModel), 5);
  EXPECT_GE(ReplaySeeds("model_text", kDamagedCopies,
                        [](std::string_view data) { (void)FuzzModelText(data); }),
            3);
}

void ExpectAcceptedWhole(const std::string& file, const std::string& name) {
  const GgufModelOutcome outcome = FuzzGgufModel(file);
  EXPECT_TRUE(outcome.container && outcome.checkpoint && outcome.config && outcome.text) << name;
}

// Otherwise a fuzzer starts from nothing but refusals.
TEST(ModelFuzzSeedsTest, SoundSeedsAreAccepted) {
  for (const char* name : {"glm4moe", "deepseek2"})
    ExpectAcceptedWhole(ReadAll(SeedPath("gguf_model", name)), name);
  for (const char* name : {"text_template", "named_templates", "eos_in_config"})
    EXPECT_TRUE(FuzzModelText(ReadAll(SeedPath("model_text", name)))) << name;
  EXPECT_FALSE(FuzzModelText(ReadAll(SeedPath("model_text", "no_such_token"))));
}

// What is checked of accepted files holds for real ones.
TEST(ModelFuzzSeedsTest, GoldenModelsAreAccepted) {
  for (const char* name : {"tiny-a-Q4_0.gguf", "tiny-flash-F16.gguf", "tiny-k-Q4_K_M.gguf"}) {
    const std::string zero_bytes_more(1, '\0');
    ExpectAcceptedWhole(
        zero_bytes_more + ReadAll(SourcePath(std::string("tests/goldens/models/") + name)), name);
  }
}

}  // namespace
}  // namespace lockstep
