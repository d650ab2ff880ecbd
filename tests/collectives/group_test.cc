#include "collectives/group.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <ostream>

#include "runtime/base/clock.h"
#include "tests/collectives/checks.h"
#include "tests/collectives/ranks.h"
#include "tests/support/rdma.h"
#include "tests/support/sanitized.h"

namespace lockstep {
namespace {

void ExpectAllOk(const std::vector<Status>& results) {
  for (size_t rank = 0; rank < results.size(); ++rank) {
    EXPECT_TRUE(results[rank].ok()) << "rank " << rank << ": " << results[rank];
  }
}

struct Case {
  std::string collective;
  int ranks;
};
void PrintTo(const Case& test, std::ostream* out) { *out << test.collective << test.ranks; }

class EveryGroup : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string reason = testing::WhyNot(GetParam().collective);
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_P(EveryGroup, MovesAndAddsEverySizeRightly) {
  std::vector<BootstrapOptions> all = LocalRanks(GetParam().ranks, GetParam().collective);
  for (BootstrapOptions& options : all) options.slot_bytes = 64 << 10;
  ExpectAllOk(RunGroups(all, CheckEverything));
}

TEST_P(EveryGroup, AddsLongSlotsInChunks) {
  std::vector<BootstrapOptions> all = LocalRanks(GetParam().ranks, GetParam().collective);
  for (BootstrapOptions& options : all) options.slot_bytes = size_t{3} << 20;
  ExpectAllOk(RunGroups(all, [](Group& group) -> Status {
    for (const size_t count : {size_t{786'432}, size_t{400'001}, size_t{100'003}}) {
      LOCKSTEP_RETURN_IF_ERROR(CheckSumSlots(group, count, static_cast<uint32_t>(count)));
      LOCKSTEP_RETURN_IF_ERROR(CheckAllReduce(group, count + 1, 5));
    }
    if (group.size() > 3) return OkStatus();
    for (const WireFormat wire : {WireFormat::kBF16, WireFormat::kInt8}) {
      for (const size_t count : {size_t{400'001}, size_t{29'157}}) {
        LOCKSTEP_RETURN_IF_ERROR(CheckSumSlots(group, count, 6, wire));
      }
    }
    return OkStatus();
  }));
}

TEST_P(EveryGroup, DoesNotDriftOverManyExchanges) {
  const int count = IsSimulated(GetParam().collective) ? 200 : 2000;
  ExpectAllOk(RunGroups(LocalRanks(GetParam().ranks, GetParam().collective),
                        [count](Group& group) { return CheckManyExchanges(group, count); }));
}

TEST_P(EveryGroup, StatesItsTraits) {
  ExpectAllOk(RunGroups(LocalRanks(GetParam().ranks, GetParam().collective), [](Group& group) {
    const std::string& collective = GetParam().collective;
    const std::string name = collective.substr(0, collective.find('_'));
    EXPECT_EQ(group.traits().name, group.size() == 1 ? "single" : name);
    EXPECT_TRUE(group.traits().slots_in_parts);
    EXPECT_EQ(group.traits().any_order_is_fixed, name != "mpi");
    EXPECT_EQ(group.traits().slot_bytes, size_t{1} << 20);
    return OkStatus();
  }));
}

TEST_P(EveryGroup, StandsBesideOthersOfTheSameRanks) {
  ExpectAllOk(
      RunGroupsBesideEachOther(LocalRanks(GetParam().ranks, GetParam().collective), 3,
                               [](Group& group) { return CheckManyExchanges(group, 100); }));
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* collective : {"tcp", "shm"}) {
    for (int ranks = 1; ranks <= (kSanitized ? 4 : 8); ++ranks)
      cases.push_back({collective, ranks});
  }
  for (const char* collective : {"sim", "sim_in_place"}) {
    for (const int ranks : {2, 3, 4}) cases.push_back({collective, ranks});
  }
  for (const char* collective : {"rdma_rc", "rdma_uc"}) {
    for (const int ranks : {2, 3}) cases.push_back({collective, ranks});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Groups, EveryGroup, ::testing::ValuesIn(AllCases()),
                         [](const auto& values) {
                           return values.param.collective + std::to_string(values.param.ranks);
                         });

TEST(Membership, OpensGroupsAndLinksOfEveryTransportBesideEachOther) {
  ExpectAllOk(RunAsThreads(LocalRanks(3, "tcp"), [](Membership& membership) -> Status {
    LOCKSTEP_ASSIGN_OR_RETURN(const auto tcp, membership.OpenGroup(size_t{3} << 20));
    LOCKSTEP_ASSIGN_OR_RETURN(const auto shm, membership.OpenGroup("shm", size_t{2} << 20));
    EXPECT_STREQ(tcp->traits().name, "tcp");
    EXPECT_EQ(tcp->traits().slot_bytes, size_t{3} << 20);
    EXPECT_STREQ(shm->traits().name, "shm");
    EXPECT_EQ(shm->traits().slot_bytes, size_t{2} << 20);
    for (const char* transport : {"tcp", "shm"}) {
      LOCKSTEP_ASSIGN_OR_RETURN(const Mesh mesh, membership.OpenMesh(transport, 4096));
      EXPECT_EQ(mesh.links.size(), 3u);
      EXPECT_EQ(mesh.links[static_cast<size_t>(tcp->rank())], nullptr);
      EXPECT_EQ(mesh.window.bytes().size(), 4096u);
    }
    LOCKSTEP_RETURN_IF_ERROR(CheckManyExchanges(*shm, 20));
    return CheckManyExchanges(*tcp, 20);
  }));
}

class LongRun : public ::testing::TestWithParam<const char*> {};

// As many as fit into the time where the machine is busy and an exchange takes a time slice.
TEST_P(LongRun, KeepsStepOverHundredThousandExchanges) {
  // A simulated exchange takes a tenth of a millisecond and more.
  const int count = 100'000 / (kSanitized ? 10 : 1) / (IsSimulated(GetParam()) ? 50 : 1);
  const Deadline until = Deadline::After(100'000);
  ExpectAllOk(RunGroups(LocalRanks(2, GetParam()), [&](Group& group) -> Status {
    int done = 0;
    for (std::byte go_on{1}; go_on != std::byte{0} && done < count; done += 500) {
      LOCKSTEP_RETURN_IF_ERROR(CheckManyExchanges(group, 500));
      if (until.Passed()) go_on = std::byte{0};
      LOCKSTEP_RETURN_IF_ERROR(Broadcast(group, std::span(&go_on, 1), 0));
    }
    if (group.rank() == 0) std::printf("%d exchanges\n", done);
    return OkStatus();
  }));
}

INSTANTIATE_TEST_SUITE_P(Groups, LongRun, ::testing::Values("tcp", "shm", "sim", "sim_in_place"),
                         [](const auto& values) { return std::string(values.param); });

class Links : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string reason = testing::WhyNot(GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_P(Links, ASumOfNegativeZerosAndInfinitiesIsTheFold) {
  ExpectAllOk(RunGroups(LocalRanks(3, GetParam()), [](Group& group) -> Status {
    std::vector<float> data = {-0.0f, INFINITY, group.rank() == 1 ? 1e30f : -1e30f};
    LOCKSTEP_RETURN_IF_ERROR(AllReduceSum(group, data));
    EXPECT_TRUE(std::signbit(data[0]));
    EXPECT_EQ(data[1], INFINITY);
    EXPECT_EQ(data[2], (-1e30f + 1e30f) + -1e30f);
    return OkStatus();
  }));
}

TEST_P(Links, RanksOutOfStepAreNamed) {
  const std::vector<Status> results =
      RunGroups(LocalRanks(2, GetParam()), [](Group& group) -> Status {
        std::vector<float> data(group.rank() == 0 ? 10 : 12);
        return AllReduceSum(group, data);
      });
  for (int rank = 0; rank < 2; ++rank) {
    ASSERT_FALSE(results[rank].ok());
    EXPECT_EQ(KindOf(results[rank]), ErrorKind::kPeerLost);
  }
  const std::string first = MessageOf(results[0].ok() ? results[1] : results[0]);
  EXPECT_NE(first.find("rank 1 ("), std::string::npos) << first;
}

TEST_P(Links, AnExchangeMeetingAMessageIsRefused) {
  std::vector<BootstrapOptions> all = LocalRanks(2, GetParam());
  for (BootstrapOptions& options : all) options.exchange_timeout_ms = 500;
  const std::vector<Status> results = RunGroups(all, [](Group& group) -> Status {
    if (group.rank() == 0) return Barrier(group);
    return group.Send(0, {});
  });
  EXPECT_EQ(KindOf(results[0]), ErrorKind::kPeerLost);
  EXPECT_EQ(MessageOf(results[0]).rfind("rank 1 (", 0), 0u) << results[0];
  // A stream has one order and shows it at once; over shared memory it takes the timeout.
  if (std::string(GetParam()) == "tcp") {
    EXPECT_NE(MessageOf(results[0]).find("out of step"), std::string::npos) << results[0];
  }
}

TEST_P(Links, ASilentRankIsNamedWhenTheExchangeTimesOut) {
  std::vector<BootstrapOptions> all = LocalRanks(3, GetParam());
  for (BootstrapOptions& options : all) options.exchange_timeout_ms = 200;
  std::atomic<int> done{0};
  const std::vector<Status> results = RunGroups(all, [&](Group& group) -> Status {
    Status result;
    if (group.rank() != 1) result = Barrier(group);
    ++done;
    while (done < 3) std::this_thread::yield();
    return result;
  });
  for (const int rank : {0, 2}) {
    EXPECT_EQ(KindOf(results[rank]), ErrorKind::kPeerLost);
    const std::string message = MessageOf(results[rank]);
    EXPECT_EQ(message.rfind("rank 1 (", 0), 0u) << message;
    EXPECT_NE(message.find("exchange 1"), std::string::npos) << message;
    EXPECT_NE(message.find("200 ms"), std::string::npos) << message;
  }
}

TEST_P(Links, AnErrorStays) {
  std::vector<BootstrapOptions> all = LocalRanks(2, GetParam());
  for (BootstrapOptions& options : all) options.exchange_timeout_ms = 50;
  std::atomic<bool> done{false};
  ExpectAllOk(RunGroups(all, [&](Group& group) -> Status {
    if (group.rank() == 1) {
      while (!done) std::this_thread::yield();
      return OkStatus();
    }
    const Status first = Barrier(group);
    EXPECT_FALSE(first.ok());
    EXPECT_EQ(group.Begin(4).status(), first);
    EXPECT_EQ(group.Send(1, {}), first);
    done = true;
    return OkStatus();
  }));
}

TEST_P(Links, AnAbortFromAnotherThreadEndsAWait) {
  const std::vector<Status> results =
      RunGroups(LocalRanks(2, GetParam()), [](Group& group) -> Status {
        if (group.rank() == 1) {
          std::byte nothing[1];
          return group.Receive(0, nothing, Patience::kIdle);
        }
        std::thread([&] { group.Abort(ModelError("layer 3 has NaN weights")); }).join();
        std::byte nothing[1];
        return group.Receive(1, nothing, Patience::kIdle);
      });
  EXPECT_EQ(KindOf(results[0]), ErrorKind::kModel);
  EXPECT_EQ(KindOf(results[1]), ErrorKind::kModel);
  EXPECT_EQ(MessageOf(results[0]), "layer 3 has NaN weights");
  EXPECT_EQ(MessageOf(results[1]).rfind("rank 0 (", 0), 0u) << results[1];
  EXPECT_NE(MessageOf(results[1]).find("layer 3 has NaN weights"), std::string::npos) << results[1];
}

TEST_P(Links, AnIdleReceiverWakesForAMessage) {
  std::vector<BootstrapOptions> all = LocalRanks(2, GetParam());
  for (BootstrapOptions& options : all)
    options.exchange_timeout_ms = 200;  // must not matter to an idle wait
  ExpectAllOk(RunGroups(all, [](Group& group) -> Status {
    std::vector<std::byte> message;
    if (group.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
      message.resize(100'000, std::byte{7});
    }
    LOCKSTEP_RETURN_IF_ERROR(BroadcastMessage(group, &message, 0, Patience::kIdle));
    EXPECT_EQ(message, std::vector<std::byte>(100'000, std::byte{7}));
    return OkStatus();
  }));
}

TEST_P(Links, AMessageOverTheLimitIsRefused) {
  const std::vector<Status> results =
      RunGroups(LocalRanks(2, GetParam()), [](Group& group) -> Status {
        std::vector<std::byte> message(group.rank() == 0 ? 2000 : 0);
        return BroadcastMessage(group, &message, 0, Patience::kStep,
                                group.rank() == 0 ? 4000 : 1000);
      });
  ASSERT_FALSE(results[1].ok());
  EXPECT_NE(MessageOf(results[1]).find("over the limit of 1000"), std::string::npos) << results[1];
}

TEST_P(Links, BuffersOfWrongSizeAreRefused) {
  ExpectAllOk(RunGroups(LocalRanks(2, GetParam()), [](Group& group) -> Status {
    std::vector<std::byte> mine(10), all(19);
    EXPECT_FALSE(AllGather(group, mine, all).ok());
    EXPECT_FALSE(AllToAll(group, {}, {}).ok());
    return Barrier(group);
  }));
}

INSTANTIATE_TEST_SUITE_P(Groups, Links, ::testing::Values("tcp", "shm", "rdma_rc", "rdma_uc"),
                         [](const auto& values) { return std::string(values.param); });

}  // namespace
}  // namespace lockstep
