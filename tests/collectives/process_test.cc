// Ranks as processes that die, stop or give up: every other rank says who and why, soon.
#include <gtest/gtest.h>

#include <random>

#include "tests/collectives/checks.h"
#include "tests/collectives/processes.h"
#include "tests/support/rdma.h"
#include "tests/support/sanitized.h"

namespace lockstep {
namespace {

// Generous for a machine whose cores are busy; what is measured is about a millisecond.
constexpr int64_t kSoonNs = 2'000'000'000;

Status ExchangeForEver(Membership& membership, const std::function<void()>& ready) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, membership.OpenGroup());
  for (uint32_t i = 0;; ++i) {
    LOCKSTEP_RETURN_IF_ERROR(CheckAllReduce(*group, 5120, i % 4));
    if (i == 20) ready();
  }
}

// Rank 0 never sends; the others wait for it between requests.
Status WaitForEver(Membership& membership, const std::function<void()>& ready) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, membership.OpenGroup());
  LOCKSTEP_RETURN_IF_ERROR(Barrier(*group));
  ready();
  if (group->rank() == 0) {
    while (membership.Health().ok()) usleep(1000);
    return membership.Health();
  }
  std::vector<std::byte> message;
  return BroadcastMessage(*group, &message, 0, Patience::kIdle);
}

struct Case {
  std::string collective;
  int ranks;
  int victim;
  bool idle;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << "rank " << c.victim << ", " << c.collective;
}

class ADeadRank : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const std::string reason = testing::WhyNot(GetParam().collective);
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_P(ADeadRank, IsNamedByAllOthersSoon) {
  const Case& test = GetParam();
  Processes ranks(LocalRanks(test.ranks, test.collective),
                  test.idle ? WaitForEver : ExchangeForEver);
  ASSERT_TRUE(ranks.AllReady());
  usleep(std::random_device()() % 20'000);
  const std::string name = "rank " + std::to_string(test.victim) + " (";
  const std::string pid = "pid " + std::to_string(ranks.pid(test.victim)) + ")";
  ranks.Signal(test.victim, SIGKILL);
  const int64_t killed_ns = NowNs();
  for (int rank = 0; rank < test.ranks; ++rank) {
    const Ended ended = ranks.Wait(rank);
    if (rank == test.victim) {
      EXPECT_EQ(ended.code, -SIGKILL);
      continue;
    }
    EXPECT_EQ(ended.code, 4) << "rank " << rank << ": " << ended.text;
    EXPECT_EQ(ended.text.rfind(" " + name, 0), 0u) << "rank " << rank << ": " << ended.text;
    EXPECT_NE(ended.text.find(pid), std::string::npos) << "rank " << rank << ": " << ended.text;
    EXPECT_LT(ended.at_ns - killed_ns, kSoonNs) << "rank " << rank;
  }
}

class EveryGroupOfProcesses : public ::testing::TestWithParam<std::pair<const char*, int>> {};

TEST_P(EveryGroupOfProcesses, MovesAndAddsEverySizeRightly) {
  const auto [collective, size] = GetParam();
  std::vector<BootstrapOptions> all = LocalRanks(size, collective);
  for (BootstrapOptions& options : all) options.slot_bytes = 64 << 10;
  Processes ranks(all, [](Membership& membership, const std::function<void()>&) -> Status {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, membership.OpenGroup());
    return CheckEverything(*group);
  });
  for (int rank = 0; rank < size; ++rank) {
    const Ended ended = ranks.Wait(rank);
    EXPECT_EQ(ended.code, 0) << "rank " << rank << ": " << ended.text;
  }
}

std::vector<std::pair<const char*, int>> Sizes() {
  std::vector<std::pair<const char*, int>> sizes;
  for (const char* collective : {"tcp", "shm"}) {
    for (int size = 1; size <= (kSanitized ? 4 : 8); ++size) sizes.emplace_back(collective, size);
  }
  return sizes;
}

INSTANTIATE_TEST_SUITE_P(Processes, EveryGroupOfProcesses, ::testing::ValuesIn(Sizes()),
                         [](const auto& values) {
                           return values.param.first + std::to_string(values.param.second);
                         });

std::vector<Case> Victims() {
  std::vector<Case> cases;
  for (const char* collective : {"tcp", "shm"}) {
    for (const bool idle : {false, true}) {
      for (const int ranks : {2, 3, 5}) {
        for (int victim = 0; victim < ranks; ++victim)
          cases.push_back({collective, ranks, victim, idle});
      }
    }
  }
  for (const char* collective : {"rdma_rc", "rdma_uc"}) {
    for (const bool idle : {false, true}) cases.push_back({collective, 3, 1, idle});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Processes, ADeadRank, ::testing::ValuesIn(Victims()),
                         [](const auto& values) {
                           const Case& test = values.param;
                           return test.collective + std::to_string(test.ranks) +
                                  (test.idle ? "Idle" : "Exchanging") + "Victim" +
                                  std::to_string(test.victim);
                         });

class EveryTransport : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string reason = testing::WhyNot(GetParam());
    if (!reason.empty()) GTEST_SKIP() << reason;
  }
};

TEST_P(EveryTransport, AStoppedRankIsNamedAfterThePeerTimeout) {
  std::vector<BootstrapOptions> all = LocalRanks(3, GetParam());
  for (BootstrapOptions& options : all) options.peer_timeout_ms = 1000;
  for (const int victim : {0, 1}) {
    std::vector<BootstrapOptions> again = LocalRanks(3, GetParam());
    for (size_t i = 0; i < all.size(); ++i) again[i].peer_timeout_ms = all[i].peer_timeout_ms;
    Processes ranks(again, ExchangeForEver);
    ASSERT_TRUE(ranks.AllReady());
    ranks.Signal(victim, SIGSTOP);
    for (int rank = 0; rank < 3; ++rank) {
      if (rank == victim) continue;
      const Ended ended = ranks.Wait(rank);
      EXPECT_EQ(ended.code, 4) << ended.text;
      EXPECT_EQ(ended.text.rfind(" rank " + std::to_string(victim) + " (", 0), 0u) << ended.text;
      EXPECT_NE(ended.text.find("has not been heard of"), std::string::npos) << ended.text;
    }
    // The rank itself hears why the others are gone.
    ranks.Signal(victim, SIGCONT);
    const Ended ended = ranks.Wait(victim);
    EXPECT_EQ(ended.code, 4) << ended.text;
    EXPECT_EQ(ended.text.rfind(" rank " + std::to_string(victim) + " (", 0), 0u) << ended.text;
    EXPECT_NE(ended.text.find("has not been heard of"), std::string::npos) << ended.text;
  }
  (void)close(all[0].rendezvous_fd);
}

// A killed rank tells nobody anything.
TEST_P(EveryTransport, AStoppedRankWhosePeerDiesMeanwhileKnowsThatItWasAway) {
  std::vector<BootstrapOptions> all = LocalRanks(2, GetParam());
  for (BootstrapOptions& options : all) options.peer_timeout_ms = 500;
  Processes ranks(all, ExchangeForEver);
  ASSERT_TRUE(ranks.AllReady());
  ranks.Signal(1, SIGSTOP);
  ranks.Signal(0, SIGKILL);
  (void)ranks.Wait(0);
  (void)usleep(700'000);
  ranks.Signal(1, SIGCONT);
  const Ended ended = ranks.Wait(1);
  EXPECT_EQ(ended.code, 4) << ended.text;
  EXPECT_EQ(ended.text.rfind(" rank 0 (", 0), 0u) << ended.text;
  EXPECT_NE(ended.text.find("was stopped or starved for"), std::string::npos) << ended.text;
}

TEST_P(EveryTransport, AnAbortReachesAllWithItsKindAndReason) {
  for (const int origin : {0, 1, 2}) {
    Processes ranks(LocalRanks(3, GetParam()),
                    [origin](Membership& membership, const std::function<void()>&) -> Status {
                      LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group,
                                                membership.OpenGroup());
                      for (int i = 0;; ++i) {
                        LOCKSTEP_RETURN_IF_ERROR(CheckAllReduce(*group, 100, 1));
                        if (i == 50 && group->rank() == origin) {
                          const Status reason = ModelError("tensor 'x' has NaN weights");
                          membership.Abort(reason);
                          return reason;
                        }
                      }
                    });
    for (int rank = 0; rank < 3; ++rank) {
      const Ended ended = ranks.Wait(rank);
      EXPECT_EQ(ended.code, 3) << ended.text;
      EXPECT_NE(ended.text.find("tensor 'x' has NaN weights"), std::string::npos) << ended.text;
      if (rank != origin) {
        EXPECT_EQ(ended.text.rfind(" rank " + std::to_string(origin) + " (", 0), 0u) << ended.text;
      }
    }
  }
}

TEST_P(EveryTransport, AnOrderlyEndIsSilent) {
  Processes ranks(LocalRanks(3, GetParam()),
                  [](Membership& membership, const std::function<void()>&) -> Status {
                    LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group,
                                              membership.OpenGroup());
                    LOCKSTEP_RETURN_IF_ERROR(Barrier(*group));
                    membership.Leave();
                    // Rank 0 is the last to go; nobody takes the others' ends for deaths.
                    if (group->rank() == 0) usleep(200'000);
                    return membership.Health();
                  });
  for (int rank = 0; rank < 3; ++rank) {
    const Ended ended = ranks.Wait(rank);
    EXPECT_EQ(ended.code, 0) << ended.text;
  }
}

TEST_P(EveryTransport, ARankThatLeavesEarlyIsNotTakenForACrash) {
  Processes ranks(LocalRanks(2, GetParam()),
                  [](Membership& membership, const std::function<void()>&) -> Status {
                    {
                      LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group,
                                                membership.OpenGroup());
                      LOCKSTEP_RETURN_IF_ERROR(Barrier(*group));
                    }
                    if (membership.ranks().size() == 2 && membership.local_rank() == 0)
                      usleep(300'000);
                    return membership.Health();
                  });
  for (int rank = 0; rank < 2; ++rank) EXPECT_EQ(ranks.Wait(rank).code, 0);
}

INSTANTIATE_TEST_SUITE_P(Processes, EveryTransport,
                         ::testing::Values("tcp", "shm", "rdma_rc", "rdma_uc"),
                         [](const auto& values) { return std::string(values.param); });

}  // namespace
}  // namespace lockstep
