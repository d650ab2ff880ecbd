#include "launcher/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "runtime/base/os.h"
#include "tests/launcher/tiny_question.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Loading this small model takes more than its cache: that would hide what is asked here.
MemoryQuestion TinyQuestion() {
  MemoryQuestion question = testing::TinyQuestion();
  question.slice.staging_bytes = 0;
  return question;
}

uint64_t Needed(const MemoryQuestion& question, int64_t blocks) {
  ModelLimits limits = question.limits;
  limits.kv_blocks = blocks;
  return PlanMemory(question.config, question.slice, limits, question.rank, question.threads)
      .total();
}

TEST(Memory, WithRoomForAllEverythingIsGranted) {
  MemoryQuestion question = TinyQuestion();
  question.available_bytes = Needed(question, 1024);
  EXPECT_EQ(*FitKvBlocks(question), 1024);
  question.available_bytes = 0;  // not known
  EXPECT_EQ(*FitKvBlocks(question), 1024);
}

TEST(Memory, TheLargestNumberOfBlocksThatFitsIsFound) {
  MemoryQuestion question = TinyQuestion();
  for (const int64_t blocks : {256, 257, 600, 1023}) {
    question.available_bytes = Needed(question, blocks);
    EXPECT_EQ(*FitKvBlocks(question), blocks);
    question.available_bytes = Needed(question, blocks + 1) - 1;
    EXPECT_EQ(*FitKvBlocks(question), blocks);
  }
}

TEST(Memory, TooLittleForOneSequenceIsRefusedWithWhatWouldFit) {
  MemoryQuestion question = TinyQuestion();
  question.available_bytes = Needed(question, 100);
  const StatusOr<int64_t> blocks = FitKvBlocks(question);
  ASSERT_FALSE(blocks.ok());
  EXPECT_EQ(ExitCode(blocks.status()), 3);
  const std::string message = MessageOf(blocks.status());
  EXPECT_THAT(message, AllOf(HasSubstr("4096 tokens"), HasSubstr("--max-model-len")));
  // The advice holds.
  question.limits.max_model_len =
      std::atoll(message.substr(message.find("--max-model-len") + 16).c_str());
  EXPECT_GE(question.limits.max_model_len, 1600);
  EXPECT_TRUE(FitKvBlocks(question).ok());
  question.limits.max_model_len += 64;
  EXPECT_FALSE(FitKvBlocks(question).ok());
}

TEST(Memory, TooLittleForTheWeightsSaysSo) {
  MemoryQuestion question = TinyQuestion();
  question.available_bytes = 1000;
  const StatusOr<int64_t> blocks = FitKvBlocks(question);
  ASSERT_FALSE(blocks.ok());
  EXPECT_THAT(MessageOf(blocks.status()), AllOf(HasSubstr("more ranks"), HasSubstr("--shares")));
}

TEST(Memory, RanksOfOneHostShareWhatIsAvailable) {
  const uint64_t alone = MemoryForRank(1), together = MemoryForRank(4);
  ASSERT_GT(alone, 0u);
  EXPECT_NEAR(static_cast<double>(together), static_cast<double>(alone) / 4,
              static_cast<double>(alone) * 0.05);
}

// Files as a kernel would show them.
void Put(const testing::TemporaryDirectory& root, const std::string& path,
         const std::string& text) {
  std::filesystem::create_directories(std::filesystem::path(root.File(path)).parent_path());
  root.Write(path, text);
}

TEST(ControlGroups, TheSmallestLimitOfAllGroupsAboveCounts) {
  const testing::TemporaryDirectory root;
  EXPECT_EQ(os::ControlGroupBytesLeft(root.path()), UINT64_MAX);
  Put(root, "proc/self/cgroup", "0::/user.slice/a.scope\n");
  EXPECT_EQ(os::ControlGroupBytesLeft(root.path()), UINT64_MAX);
  const std::string scope = "sys/fs/cgroup/user.slice/a.scope/";
  Put(root, scope + "memory.max", "max\n");
  EXPECT_EQ(os::ControlGroupBytesLeft(root.path()), UINT64_MAX);
  Put(root, "sys/fs/cgroup/user.slice/memory.max", "5000000\n");
  Put(root, "sys/fs/cgroup/user.slice/memory.current", "1000000\n");
  EXPECT_EQ(os::ControlGroupBytesLeft(root.path()), 4'000'000u);
  // Cached files can be given up.
  Put(root, scope + "memory.max", "3000000\n");
  Put(root, scope + "memory.current", "2500000\n");
  Put(root, scope + "memory.stat", "anon 7\ninactive_file 1500000\nactive_file 1\n");
  EXPECT_EQ(os::ControlGroupBytesLeft(root.path()), 2'000'000u);
  Put(root, scope + "memory.current", "9000000\n");
  EXPECT_EQ(os::ControlGroupBytesLeft(root.path()), 0u);
}

TEST(ControlGroups, AContainersOwnViewAndTheOldVersionAreRead) {
  const testing::TemporaryDirectory root;
  Put(root, "proc/self/cgroup", "0::/\n");
  Put(root, "sys/fs/cgroup/memory.max", "2147483648\n");
  EXPECT_EQ(os::ControlGroupBytesLeft(root.path()), uint64_t{2} << 30);
  // A path of the host that the container does not see.
  Put(root, "proc/self/cgroup", "9:cpu:/x\n4:memory:/docker/abc\n");
  Put(root, "sys/fs/cgroup/memory/memory.limit_in_bytes", "1000000\n");
  Put(root, "sys/fs/cgroup/memory/memory.usage_in_bytes", "400000\n");
  Put(root, "sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 100000\n");
  EXPECT_EQ(os::ControlGroupBytesLeft(root.path()), 700'000u);
}

}  // namespace
}  // namespace lockstep
