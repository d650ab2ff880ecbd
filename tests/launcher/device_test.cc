// Which device a rank takes, what ranks with other kernels must agree on, and what fits beside
// them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "launcher/cluster_yaml.h"
#include "launcher/memory.h"
#include "launcher/settings.h"
#include "launcher/world.h"
#include "tests/launcher/tiny_question.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(Device, OfANodeStandsAboveThatOfAll) {
  const StatusOr<ClusterFile> file = ParseClusterYaml(
      "device: cuda:1\n"
      "nodes:\n"
      "  - address: a\n"
      "  - address: b\n"
      "    device: cpu\n"
      "  - address: c\n"
      "    device: cuda:0\n",
      "c.yaml");
  ASSERT_TRUE(file.ok()) << file.status();
  std::vector<std::string> devices;
  for (int rank = 0; rank < 3; ++rank) {
    Options options = file->options;
    options.rank = rank;
    // Loopback needs no secret.
    Surroundings around;
    around.nodes = file->nodes;
    for (ClusterNode& node : around.nodes) node.host = "127.0.0.1";
    const StatusOr<World> world = DecideWorld(options, around, false);
    ASSERT_TRUE(world.ok()) << world.status();
    devices.push_back(world->device.Text());
  }
  EXPECT_EQ(devices, (std::vector<std::string>{"cuda:1", "cpu", "cuda:0"}));
}

TEST(Device, ThatIsNoneIsNamedWithItsLine) {
  const auto file = ParseClusterYaml("nodes:\n  - address: a\n    device: gpu0\n", "c.yaml");
  ASSERT_FALSE(file.ok());
  EXPECT_THAT(MessageOf(file.status()),
              AllOf(HasSubstr("c.yaml:3: device"), HasSubstr("'gpu0'"), HasSubstr("cuda:N")));
  Options options;
  options.device = "cuda";
  const auto world = DecideWorld(options, {}, false);
  ASSERT_FALSE(world.ok());
  EXPECT_EQ(ExitCode(world.status()), 2);
  EXPECT_THAT(MessageOf(world.status()), HasSubstr("--device: 'cuda'"));
}

// What two ranks with these kernels do not agree on; empty: they come together.
std::string Difference(const Options& options, const char* first, const char* second,
                       kernels::Precision second_precision = kernels::Precision::kFast) {
  const auto a = SettingsOf(options, World(), first, kernels::Precision::kFast);
  const auto b = SettingsOf(options, World(), second, second_precision);
  std::string names;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].value != b[i].value) names += a[i].name + " (" + a[i].remedy + ") ";
  }
  return names;
}

TEST(Settings, OtherKernelsComeTogetherOnlyIfAskedTo) {
  Options options;
  EXPECT_EQ(Difference(options, "cpu/avx2", "cpu/avx2"), "");
  EXPECT_THAT(Difference(options, "cpu/avx2", "cuda/sm_121"),
              AllOf(HasSubstr("kernels"), HasSubstr("--mixed-kernels")));
  options.mixed_kernels = true;
  EXPECT_EQ(Difference(options, "cpu/avx2", "cuda/sm_121"), "");
  // Activations are rounded on all ranks or on none.
  EXPECT_THAT(Difference(options, "cpu/avx2", "cpu/avx2", kernels::Precision::kExact),
              AllOf(HasSubstr("exact"), HasSubstr("--exact")));
}

TEST(Settings, MixedKernelsLeaveNoStepInHalves) {
  Options options;
  options.mixed_kernels = true;
  EXPECT_TRUE(CheckTogether(options).ok());
  options.overlap_rows = 64;
  EXPECT_THAT(MessageOf(CheckTogether(options)), HasSubstr("leave one of them out"));
}

MemoryQuestion TinyQuestion() {
  MemoryQuestion question = testing::TinyQuestion();
  question.limits.exchange_bytes = 1000;
  return question;
}

TEST(DeviceMemory, HoldsWhatIsComputedWithAndNotWhatIsReadOrExchanged) {
  MemoryQuestion question = TinyQuestion();
  question.limits.kv_blocks = 300;
  const MemoryPlan plan = PlanMemory(question.config, question.slice, question.limits, 0, 1);
  question.limits.kv_blocks = 4 * 256;
  question.device_bytes = plan.weight_bytes + plan.kv_bytes + plan.scratch_bytes + plan.work_bytes;
  question.available_bytes = plan.staging_bytes + plan.exchange_bytes;
  EXPECT_EQ(*FitKvBlocks(question), 300);
  --question.available_bytes;
  const auto host = FitKvBlocks(question);
  ASSERT_FALSE(host.ok());
  EXPECT_THAT(MessageOf(host.status()), HasSubstr("beside its device"));
  ++question.available_bytes;
  question.device_bytes = plan.weight_bytes;
  const auto device = FitKvBlocks(question);
  ASSERT_FALSE(device.ok());
  EXPECT_THAT(MessageOf(device.status()), AllOf(HasSubstr("on its device"), HasSubstr("--shares")));
}

TEST(DeviceMemory, IsWhatIsFreeInPartsForThoseThatShareIt) {
  constexpr uint64_t kGiB = uint64_t{1} << 30;
  const kernels::DeviceMemory own{.total_bytes = 140 * kGiB, .free_bytes = 100 * kGiB};
  const RankMemory alone = MemoryForRank(own, 1, 1), together = MemoryForRank(own, 2, 2);
  EXPECT_NEAR(static_cast<double>(alone.device_bytes) / kGiB, 94, 0.01);
  EXPECT_EQ(together.device_bytes, alone.device_bytes / 2);
  EXPECT_EQ(alone.bytes(), alone.device_bytes);
  EXPECT_GT(alone.host_bytes, together.host_bytes);
  // Nothing free is not "not known".
  EXPECT_EQ(MemoryForRank(kernels::DeviceMemory{}, 1, 1).device_bytes, 1u);
  // What is both the host's and the device's is counted once, as the system counts it.
  const kernels::DeviceMemory shared{.total_bytes = kGiB, .free_bytes = 1, .of_host = true};
  const RankMemory both = MemoryForRank(shared, 1, 1);
  EXPECT_EQ(both.device_bytes, 0u);
  EXPECT_GT(both.host_bytes, kGiB / 4);
  const RankMemory none = MemoryForRank(std::nullopt, 1, 1);
  EXPECT_EQ(none.device_bytes, 0u);
  EXPECT_GT(none.host_bytes, 0u);
}

}  // namespace
}  // namespace lockstep
