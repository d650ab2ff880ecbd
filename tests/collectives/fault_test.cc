// Exchanges over links that misbehave, from seeds: the right result or an error that names a rank,
// and never a hang.
#include <gtest/gtest.h>

#include <cstdlib>
#include <ostream>
#include <string>

#include "tests/collectives/checks.h"
#include "tests/collectives/mesh_groups.h"
#include "tests/support/sanitized.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

constexpr int64_t kExchangeTimeoutMs = 500;
// All waits of one rank, one after the other, and a busy machine.
constexpr int64_t kSoonNs = 20'000'000'000;

struct Case {
  std::string transport;
  int ranks;
};
void PrintTo(const Case& test, std::ostream* out) { *out << test.transport << test.ranks; }

GroupOptions SmallSlots(int64_t exchange_timeout_ms) {
  GroupOptions options;
  options.slot_bytes = 16 << 10;
  options.exchange_timeout_ms = exchange_timeout_ms;
  options.spin_us = 0;
  return options;
}

// Every kind of call, small enough to be repeated often.
Status ExchangeABit(Group& group, uint32_t seed) {
  LOCKSTEP_RETURN_IF_ERROR(CheckAllReduce(group, 5120 + seed % 7, seed));
  LOCKSTEP_RETURN_IF_ERROR(CheckAllGather(group, 1000 + seed % 13, seed));
  LOCKSTEP_RETURN_IF_ERROR(CheckBroadcast(group, 3000, 0, Patience::kStep));
  LOCKSTEP_RETURN_IF_ERROR(CheckAllToAll(group, 777));
  return Barrier(group);
}

// What is promised of every rank, whatever its links did.
void ExpectRightOrNamed(const std::vector<Status>& results, const std::string& where) {
  for (size_t rank = 0; rank < results.size(); ++rank) {
    const Status& result = results[rank];
    if (result.ok()) continue;
    EXPECT_EQ(KindOf(result), ErrorKind::kPeerLost) << where << ", rank " << rank << ": " << result;
    EXPECT_EQ(MessageOf(result).rfind("rank ", 0), 0u) << where << ": " << result;
    EXPECT_NE(MessageOf(result).rfind("rank " + std::to_string(rank) + " (", 0), 0u)
        << where << ": " << result;
  }
}

class FaultyLinks : public ::testing::TestWithParam<Case> {
 protected:
  MeshesOptions Meshes(uint64_t seed) const {
    MeshesOptions options;
    options.transport = GetParam().transport;
    options.ranks = GetParam().ranks;
    options.seed = seed;
    return options;
  }
  static FaultOptions Seeded(uint64_t seed, int rank, int peer) {
    FaultOptions faults;
    faults.seed = seed * 64 + static_cast<uint64_t>(rank) * 8 + static_cast<uint64_t>(peer);
    return faults;
  }
};

TEST_P(FaultyLinks, ThatAreLateAndOutOfTurnGiveTheRightResults) {
  for (uint64_t round = 0; round < 2; ++round) {
    const uint64_t seed = testing::TestSeed() + round;
    MeshesOptions meshes = Meshes(seed);
    meshes.faults = [&](int rank, int peer) {
      FaultOptions faults = Seeded(seed, rank, peer);
      faults.most_polls_late = rank == static_cast<int>(round) ? 40 : 4;
      faults.bytes_per_poll = peer == 0 ? 500 : 0;
      return faults;
    };
    const auto results = RunMeshGroups(meshes, SmallSlots(60'000), [](Group& group) -> Status {
      if (group.size() == 2) LOCKSTEP_RETURN_IF_ERROR(CheckEverything(group));
      for (uint32_t i = 0; i < 5; ++i) LOCKSTEP_RETURN_IF_ERROR(ExchangeABit(group, i));
      return CheckManyExchanges(group, 20);
    });
    for (const Status& result : results) EXPECT_TRUE(result.ok()) << "seed " << seed << result;
  }
}

TEST_P(FaultyLinks, ThatAreCutEndAllRanksAndNameOne) {
  for (uint64_t round = 0; round < 6; ++round) {
    const uint64_t seed = testing::TestSeed() + round;
    MeshesOptions meshes = Meshes(seed);
    const int victim = static_cast<int>(seed % meshes.ranks);
    meshes.faults = [&](int rank, int peer) {
      FaultOptions faults = Seeded(seed, rank, peer);
      faults.most_polls_late = 3;
      if (rank == victim && peer == (victim + 1) % meshes.ranks)
        faults.cut_at = static_cast<int64_t>(seed % 61);
      return faults;
    };
    const int64_t start_ns = NowNs();
    const auto results =
        RunMeshGroups(meshes, SmallSlots(kExchangeTimeoutMs), [](Group& group) -> Status {
          for (uint32_t i = 0; i < 200; ++i) LOCKSTEP_RETURN_IF_ERROR(ExchangeABit(group, i));
          return OkStatus();
        });
    ExpectRightOrNamed(results, "seed " + std::to_string(seed));
    for (const Status& result : results) EXPECT_FALSE(result.ok()) << "seed " << seed;
    EXPECT_LT(NowNs() - start_ns, kSoonNs);
  }
}

TEST_P(FaultyLinks, ThatFallSilentAreNamedWhenTheExchangeTimesOut) {
  const uint64_t seed = testing::TestSeed();
  MeshesOptions meshes = Meshes(seed);
  const int victim = static_cast<int>(seed % meshes.ranks);
  meshes.faults = [&](int rank, int peer) {
    FaultOptions faults = Seeded(seed, rank, peer);
    if (rank == victim) faults.silent_at = static_cast<int64_t>(seed % 37);
    return faults;
  };
  const int64_t start_ns = NowNs();
  const auto results =
      RunMeshGroups(meshes, SmallSlots(kExchangeTimeoutMs), [](Group& group) -> Status {
        for (uint32_t i = 0; i < 200; ++i) LOCKSTEP_RETURN_IF_ERROR(ExchangeABit(group, i));
        return OkStatus();
      });
  ExpectRightOrNamed(results, "seed " + std::to_string(seed));
  for (const Status& result : results) EXPECT_FALSE(result.ok()) << "seed " << seed;
  EXPECT_LT(NowNs() - start_ns, kSoonNs);
}

TEST_P(FaultyLinks, ThatChangeBitsAreNamedWhenExchangesAreVerified) {
  for (const bool verified : {true, false}) {
    for (uint64_t round = 0; round < 4; ++round) {
      const uint64_t seed = testing::TestSeed() + round;
      MeshesOptions meshes = Meshes(seed);
      const int victim = static_cast<int>(seed % meshes.ranks);
      meshes.faults = [&](int rank, int peer) {
        FaultOptions faults = Seeded(seed, rank, peer);
        if (rank == victim) faults.corrupt_at = verified ? static_cast<int64_t>(seed % 29) : 0;
        return faults;
      };
      GroupOptions options = SmallSlots(kExchangeTimeoutMs);
      options.verify_exchanges = verified;
      const auto results = RunMeshGroups(meshes, options, [](Group& group) -> Status {
        for (uint32_t i = 0; i < 20; ++i) LOCKSTEP_RETURN_IF_ERROR(ExchangeABit(group, i));
        return OkStatus();
      });
      ASSERT_FALSE(results[victim].ok());
      if (verified) {
        ExpectRightOrNamed(results, "seed " + std::to_string(seed));
        EXPECT_NE(MessageOf(results[victim]).find("sent other bytes"), std::string::npos)
            << results[victim];
      } else {
        // The proof that the fault is one: the checks of this test see it.
        EXPECT_EQ(KindOf(results[victim]), ErrorKind::kInternal) << results[victim];
      }
    }
  }
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* transport : {"tcp", "shm", "sim", "sim_in_place"}) {
    for (const int ranks : {2, 3, 5}) {
      if (kSanitized && ranks == 5) continue;
      cases.push_back({transport, ranks});
    }
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Groups, FaultyLinks, ::testing::ValuesIn(AllCases()),
                         [](const auto& values) {
                           return values.param.transport + std::to_string(values.param.ranks);
                         });

}  // namespace
}  // namespace lockstep
