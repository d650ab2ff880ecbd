#include "transport/sim.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <random>
#include <thread>

#include "tests/support/seed.h"

namespace lockstep {
namespace {

// What one rank saw: which peer's put it was, in what order, and when.
struct Sight {
  int peer;
  uint64_t number;
  int64_t at_ns;
  bool operator==(const Sight&) const = default;
};

constexpr int kRanks = 4;
constexpr uint64_t kRounds = 12;

// Every rank puts to all others and waits for all of them, round by round; whoever is seen is
// noted.
std::vector<Sight> PutInRounds(int rank, Mesh& mesh, const Clock& clock, bool dawdles) {
  std::vector<Sight> sights;
  std::mt19937 random(std::random_device{}());
  std::vector<uint64_t> seen(kRanks, 0);
  for (uint64_t round = 1; round <= kRounds; ++round) {
    for (int peer = 0; peer < kRanks; ++peer) {
      if (peer == rank) continue;
      EXPECT_TRUE(mesh.links[peer]->Expect(0, 64).ok());
      EXPECT_TRUE(mesh.links[peer]->Put(0, 64, static_cast<uint32_t>(round)).ok());
      if (dawdles) usleep(random() % 500);
    }
    const Deadline deadline = Deadline::After(60'000);
    for (size_t missing = kRanks - 1; missing > 0 && !deadline.Passed();) {
      for (int peer = 0; peer < kRanks; ++peer) {
        if (peer == rank) continue;
        const StatusOr<LinkProgress> progress = mesh.links[peer]->Poll();
        EXPECT_TRUE(progress.ok()) << progress.status();
        if (!progress.ok()) return sights;
        if (progress->arrivals == seen[peer]) continue;
        sights.push_back({peer, seen[peer]++, clock.NowNs()});
        --missing;
      }
    }
  }
  // What has not left is lost when a link closes.
  const Deadline deadline = Deadline::After(60'000);
  for (int peer = 0; peer < kRanks; ++peer) {
    while (peer != rank && !deadline.Passed()) {
      const StatusOr<LinkProgress> progress = mesh.links[peer]->Poll();
      EXPECT_TRUE(progress.ok()) << progress.status();
      if (!progress.ok() || progress->puts == kRounds) break;
    }
  }
  return sights;
}

std::vector<std::vector<Sight>> History(uint64_t seed, bool dawdles) {
  SimOptions options;
  options.ranks = kRanks;
  options.window_bytes = 4096;
  options.seed = seed;
  options.stall_ms = 20'000;
  StatusOr<SimNetwork> network = MakeSimNetwork(options);
  EXPECT_TRUE(network.ok());
  std::vector<std::vector<Sight>> history(kRanks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < kRanks; ++rank) {
    threads.emplace_back([&, rank] {
      history[rank] = PutInRounds(rank, network->meshes[rank], *network->clock, dawdles);
      for (auto& link : network->meshes[rank].links) link.reset();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return history;
}

TEST(SimNetwork, GivesOneHistoryPerSeedHoweverThreadsAreScheduled) {
  const uint64_t seed = testing::TestSeed();
  const auto first = History(seed, false);
  for (const auto& sights : first) EXPECT_EQ(sights.size(), kRounds * (kRanks - 1));
  for (int again = 0; again < 4; ++again) EXPECT_EQ(History(seed, again % 2 == 1), first);
}

TEST(SimNetwork, DeliversInAnotherOrderWithAnotherSeed) {
  const auto order = [](const std::vector<std::vector<Sight>>& history) {
    std::vector<int> peers;
    for (const auto& sights : history) {
      for (const Sight& sight : sights) peers.push_back(sight.peer);
    }
    return peers;
  };
  EXPECT_NE(order(History(testing::TestSeed(), false)),
            order(History(testing::TestSeed() + 1, false)));
}

TEST(SimNetwork, TakesVirtualTimeForLatencyAndBandwidth) {
  SimOptions options;
  options.window_bytes = 1 << 20;
  options.latency_ns = 50'000'000;
  options.bytes_per_us = 1;
  StatusOr<SimNetwork> network = MakeSimNetwork(options);
  ASSERT_TRUE(network.ok());
  Link& a = *network->meshes[0].links[1];
  Link& b = *network->meshes[1].links[0];
  ASSERT_TRUE(b.Expect(0, 1 << 20).ok());
  ASSERT_TRUE(a.Put(0, 1 << 20, 7).ok());
  const int64_t start_ns = NowNs();
  uint64_t arrivals = 0;
  while (arrivals == 0 && NowNs() - start_ns < 30'000'000'000) {
    arrivals = b.Poll()->arrivals;
    (void)a.Poll();
  }
  EXPECT_EQ(arrivals, 1u);
  EXPECT_EQ(b.put_tag(0), 7u);
  EXPECT_GE(network->clock->NowNs(), (int64_t{1} << 20) * 1000 + options.latency_ns);
  EXPECT_LT(network->clock->NowNs(), (int64_t{1} << 20) * 1000 + 41 * options.latency_ns);
}

// One thread, which polls as often as it likes: the clock goes on when it says so, and no further.
TEST(SimNetwork, IsDrivenByWhoeverAdvancesIt) {
  SimOptions options;
  options.window_bytes = 1000;
  options.latency_ns = 1000;
  options.jitter = 0;
  options.stragglers = false;
  options.bytes_per_us = 10;
  options.driven = true;
  StatusOr<SimNetwork> network = MakeSimNetwork(options);
  ASSERT_TRUE(network.ok());
  Link& a = *network->meshes[0].links[1];
  Link& b = *network->meshes[1].links[0];
  EXPECT_FALSE(network->advance(500).happened);
  EXPECT_EQ(network->clock->NowNs(), 500);
  ASSERT_TRUE(b.Expect(0, 100).ok());
  ASSERT_TRUE(a.Put(0, 100, 7).ok());
  for (int poll = 0; poll < 500; ++poll) {
    EXPECT_EQ(a.Poll()->puts, 0u);
    EXPECT_EQ(b.Poll()->arrivals, 0u);
  }
  EXPECT_EQ(network->clock->NowNs(), 500);
  const SimEvent left = network->advance(20'000);
  EXPECT_TRUE(left.happened && !left.arrived);
  EXPECT_EQ(network->clock->NowNs(), 10'500);
  EXPECT_EQ(a.Poll()->puts, 1u);
  EXPECT_FALSE(network->advance(11'000).happened);
  const SimEvent arrived = network->advance(20'000);
  EXPECT_TRUE(arrived.happened && arrived.arrived);
  EXPECT_EQ(arrived.from, 0);
  EXPECT_EQ(arrived.to, 1);
  EXPECT_EQ(network->clock->NowNs(), 11'500);
  EXPECT_EQ(b.Poll()->arrivals, 1u);
  EXPECT_FALSE(network->advance(20'000).happened);
}

}  // namespace
}  // namespace lockstep
