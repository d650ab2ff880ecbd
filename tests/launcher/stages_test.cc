#include "launcher/stages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "launcher/settings.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using Shares = std::vector<double>;

TEST(SharesByMemory, AreEighthsOfTheLargest) {
  EXPECT_EQ(SharesByMemory({1 << 20, 1 << 20}, 2), Shares({8, 8}));
  EXPECT_EQ(SharesByMemory({64, 128, 32}, 3), Shares({4, 8, 2}));
  EXPECT_EQ(SharesByMemory({1000, 1003}, 2), Shares({8, 8}));  // others run beside us
  EXPECT_EQ(SharesByMemory({100'000, 1}, 2), Shares({8, 1}));  // nobody is left without a layer
  EXPECT_EQ(SharesByMemory({0, 0}, 2), Shares({1, 1}));        // not known
  // The ranks of a stage hold alike, so its least counts.
  EXPECT_EQ(SharesByMemory({128, 64, 128, 128}, 2), Shares({4, 8}));
}

// Who has no --shares takes part in an exchange that who has them leaves out.
TEST(SettingsOf, TellGivenSharesFromThoseByMemory) {
  const auto shares = [](int stages, std::vector<double> ranks, std::vector<double> given) {
    World world;
    world.size = 4;
    world.stages = stages;
    world.shares = std::move(ranks);
    world.stage_shares = std::move(given);
    for (const Setting& setting : SettingsOf(Options(), world, "avx2", kernels::Precision::kFast)) {
      if (setting.name == "shares") return setting.value;
    }
    return std::string("none");
  };
  EXPECT_NE(shares(2, {1, 1}, {}), shares(2, {1, 1}, {1, 1}));
  EXPECT_EQ(shares(2, {1, 1}, {1, 1}), "1,1");
  EXPECT_EQ(shares(1, {1, 1, 1, 2}, {}), "1,1,1,2");
}

TEST(CheckStageLink, ShmStaysOnOneMachine) {
  EXPECT_TRUE(CheckStageLink("shm", true).ok());
  EXPECT_TRUE(CheckStageLink("tcp", false).ok());
  EXPECT_THAT(MessageOf(CheckStageLink("shm", false)), ::testing::StartsWith("--stage-link shm"));
}

TEST(CheckPipeline, RefusesWhatItDoesNotDoWithWhatToDo) {
  EXPECT_TRUE(CheckPipeline(Options()).ok());
  const auto refusal = [](const auto& change) {
    Options options;
    change(&options);
    const Status status = CheckPipeline(options);
    EXPECT_EQ(KindOf(status), ErrorKind::kUsage);
    EXPECT_THAT(MessageOf(status), ::testing::HasSubstr("leave it out"));
    return MessageOf(status);
  };
  EXPECT_THAT(refusal([](Options* o) { o->draft = true; }), ::testing::StartsWith("--draft"));
  EXPECT_THAT(refusal([](Options* o) { o->recover = true; }), ::testing::StartsWith("--recover"));
  EXPECT_THAT(refusal([](Options* o) { o->wire = "int8"; }), ::testing::StartsWith("--wire int8"));
}

TEST(CheckPipeline, RefusesFilesOfRanks) {
  const testing::TemporaryDirectory directory;
  directory.Write("model.safetensors", "");
  EXPECT_TRUE(CheckPipelineFiles(directory.path()).ok());
  directory.Write("rank-1-of-2.lockstep", "");
  const Status refused = CheckPipelineFiles(directory.path());
  EXPECT_THAT(MessageOf(refused), ::testing::HasSubstr("files of ranks")) << refused;
}

}  // namespace
}  // namespace lockstep
