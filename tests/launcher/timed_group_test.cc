// What is counted of exchanges, and that added latency is in it by construction.
#include "launcher/timed_group.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/collectives/ranks.h"
#include "transport/delay.h"

namespace lockstep {
namespace {

constexpr size_t kValues = 250;
constexpr int64_t kSums = 20;
constexpr int64_t kLatencyNs = 2'000'000;

struct Count {
  RankMeter::Exchanges all;
  int64_t shortest_ns = INT64_MAX;  // of one sum
};

// By rank, of `kSums` sums over that.
std::vector<Count> Counted(const std::string& collective, int ranks, int64_t latency_ns) {
  std::vector<BootstrapOptions> all = LocalRanks(ranks, collective);
  for (BootstrapOptions& options : all) {
    options.added_latency = std::make_shared<AddedLatency>();
    const_cast<AddedLatency&>(*options.added_latency).ns = latency_ns;
  }
  std::vector<Count> counted(static_cast<size_t>(ranks));
  const auto statuses = RunAsThreads(all, [&](Membership& membership) -> Status {
    LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<Group> bare, membership.OpenGroup());
    const auto rank = static_cast<size_t>(bare->rank());
    Count& mine = counted[rank];
    TimedGroup group(std::move(bare), &mine.all);
    for (int64_t i = 0; i < kSums; ++i) {
      std::vector<float> data(kValues, static_cast<float>(rank + 1));
      const int64_t before_ns = mine.all.ns;
      LOCKSTEP_RETURN_IF_ERROR(AllReduceSum(group, data));
      mine.shortest_ns = std::min(mine.shortest_ns, mine.all.ns - before_ns);
      EXPECT_EQ(data.back(), static_cast<float>(ranks * (ranks + 1) / 2));
    }
    return OkStatus();
  });
  for (const Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
  return counted;
}

class TimedGroups : public ::testing::TestWithParam<const char*> {};

TEST_P(TimedGroups, CountWhatLeavesAndWaits) {
  for (const auto& [all, shortest_ns] : Counted(GetParam(), 3, 0)) {
    EXPECT_EQ(all.calls, kSums);
    // To both of the others, whole.
    EXPECT_EQ(all.bytes, kSums * 2 * kValues * sizeof(float));
    EXPECT_GT(all.wait_ns, 0);
    EXPECT_LE(all.wait_ns, all.ns);
  }
}

TEST_P(TimedGroups, NoExchangeIsShorterThanTheAddedLatency) {
  for (const auto& [all, shortest_ns] : Counted(GetParam(), 2, kLatencyNs)) {
    EXPECT_EQ(all.calls, kSums);
    EXPECT_GE(shortest_ns, kLatencyNs);
  }
}

INSTANTIATE_TEST_SUITE_P(Transports, TimedGroups, ::testing::Values("tcp", "shm"),
                         [](const auto& values) { return std::string(values.param); });

TEST(AddedLatency, IsRefusedWhereThereAreNoLinks) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  for (BootstrapOptions& options : all) options.added_latency = std::make_shared<AddedLatency>();
  const auto statuses = RunAsThreads(all, [](Membership& membership) -> Status {
    const Status opened = membership.OpenGroup("nccl").status();
    EXPECT_NE(MessageOf(opened).find("latency is added by links"), std::string::npos) << opened;
    return OkStatus();
  });
  for (const Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
}

}  // namespace
}  // namespace lockstep
