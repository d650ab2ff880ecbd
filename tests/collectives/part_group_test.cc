// Groups of some of the ranks, beside that of all.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "collectives/bootstrap.h"
#include "tests/support/ranks.h"

namespace lockstep {
namespace {

TEST(PartGroup, AddsAmongItsOwnRanksAlone) {
  for (const std::string transport : {"tcp", "shm"}) {
    testing::RunRanks(4, transport, [&](Membership& membership, Group& all) {
      const int first = all.rank() / 2 * 2;
      auto part = membership.OpenPartGroup(first, 2, 1 << 12);
      ASSERT_TRUE(part.ok()) << part.status();
      EXPECT_EQ((*part)->size(), 2);
      EXPECT_EQ((*part)->rank(), all.rank() - first);
      // Longer than a slot, and both groups in turn.
      std::vector<float> mine(5000, static_cast<float>(1 << all.rank())), everybody = mine;
      ASSERT_TRUE(AllReduceSum(**part, mine).ok());
      ASSERT_TRUE(AllReduceSum(all, everybody).ok());
      EXPECT_EQ(mine, std::vector<float>(5000, first == 0 ? 3.0f : 12.0f));
      EXPECT_EQ(everybody, std::vector<float>(5000, 15.0f));
    });
  }
}

TEST(PartGroup, OfOneRankWaitsForNobody) {
  testing::RunRanks(2, "tcp", [](Membership& membership, Group& all) {
    auto part = membership.OpenPartGroup(all.rank(), 1, 64);
    ASSERT_TRUE(part.ok()) << part.status();
    std::vector<float> mine = {static_cast<float>(all.rank())};
    ASSERT_TRUE(Barrier(**part).ok());
    EXPECT_EQ((*part)->size(), 1);
    EXPECT_EQ((*part)->rank(), 0);
  });
}

TEST(PartGroup, NamesTheSessionsRankThatSendsNothing) {
  const std::string rendezvous = "127.0.0.1:" + std::to_string(testing::FreePort());
  std::vector<std::thread> threads;
  for (int rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&, rank] {
      BootstrapOptions options;
      options.rank = rank;
      options.size = 4;
      options.rendezvous = rendezvous;
      options.exchange_timeout_ms = 300;
      auto membership = Bootstrap(options);
      ASSERT_TRUE(membership.ok()) << membership.status();
      auto part = (*membership)->OpenPartGroup(rank / 2 * 2, 2, 1 << 12);
      ASSERT_TRUE(part.ok()) << part.status();
      if (rank == 2) {
        const Status waited = Barrier(**part);
        EXPECT_EQ(LostRank(waited), 3) << waited;
        EXPECT_NE(MessageOf(waited).find("rank 3 ("), std::string::npos) << waited;
        (*membership)->Abort(waited);
      }
      // The others stay until rank 2 has given up.
      while ((*membership)->Health().ok())
        std::this_thread::sleep_for(std::chrono::milliseconds(5));
      EXPECT_EQ(LostRank((*membership)->Health()), 3);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Sign, IsTheSameOnAllRanksOfASessionAndAnotherElsewhere) {
  const auto text = std::as_bytes(std::span("stage", 5));
  std::vector<Proof> proofs(4);
  for (const int first : {0, 2}) {
    testing::RunRanks(2, "tcp", [&](Membership& membership, Group& all) {
      proofs[static_cast<size_t>(first + all.rank())] = membership.Sign(text);
    });
  }
  EXPECT_EQ(proofs[0], proofs[1]);
  EXPECT_EQ(proofs[2], proofs[3]);
  EXPECT_NE(proofs[0], proofs[2]);
}

}  // namespace
}  // namespace lockstep
