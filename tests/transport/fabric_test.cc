#include "transport/fabric.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "tests/transport/meshes.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

class EveryFabric : public ::testing::TestWithParam<const char*> {
 protected:
  void Open(int size) {
    for (int rank = 0; rank < size; ++rank) {
      auto fabric = OpenFabric(FabricOf(GetParam(), rank, size, 42));
      ASSERT_TRUE(fabric.ok()) << fabric.status();
      fabrics_.push_back(std::move(*fabric));
      addresses_.push_back(fabrics_.back()->address());
    }
  }
  // Connects all in threads; the statuses by rank.
  std::vector<Status> ConnectAll(int64_t timeout_ms) {
    std::vector<Status> results(fabrics_.size());
    std::vector<std::thread> threads;
    for (size_t rank = 0; rank < fabrics_.size(); ++rank) {
      threads.emplace_back([&, rank] {
        auto mesh = fabrics_[rank]->Connect(addresses_, Deadline::After(timeout_ms));
        results[rank] = mesh.status();
        if (!mesh.ok()) return;
        EXPECT_EQ(mesh->window.bytes().size(), 4096u);
        EXPECT_EQ(mesh->links.size(), fabrics_.size());
        for (size_t peer = 0; peer < mesh->links.size(); ++peer) {
          EXPECT_EQ(mesh->links[peer] == nullptr, peer == rank);
          if (peer != rank) EXPECT_EQ(mesh->links[peer]->view().size(), 4096u);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    return results;
  }
  StatusOr<UniqueFd> ConnectTo(int rank) {
    if (std::string(GetParam()) == "shm") return ConnectLocal(addresses_[rank]);
    return ConnectTcp(*ParseEndpoint(addresses_[rank]), Deadline::After(1000));
  }

  std::vector<std::unique_ptr<Fabric>> fabrics_;
  std::vector<std::string> addresses_;
};

TEST_P(EveryFabric, MakesAFullMesh) {
  Open(5);
  for (const Status& result : ConnectAll(20'000)) EXPECT_TRUE(result.ok()) << result;
}

TEST_P(EveryFabric, DropsStrangersWithoutDisturbingTheMembers) {
  Open(3);
  std::vector<UniqueFd> strangers;
  for (int i = 0; i < 90; ++i) {
    StatusOr<UniqueFd> stranger = ConnectTo(i % 3);
    ASSERT_TRUE(stranger.ok()) << stranger.status();
    const std::string garbage(i % 2 ? 60 : 0, 'x');
    (void)SendAll(stranger->get(), std::as_bytes(std::span(garbage)), Deadline::After(1000));
    strangers.push_back(std::move(*stranger));
  }
  for (const Status& result : ConnectAll(20'000)) EXPECT_TRUE(result.ok()) << result;
}

TEST_P(EveryFabric, RefusesARankOfAnotherSession) {
  Open(2);
  auto stranger = OpenFabric(FabricOf(GetParam(), 1, 2, 43));
  ASSERT_TRUE(stranger.ok());
  fabrics_[1] = std::move(*stranger);
  const std::vector<Status> results = ConnectAll(700);
  EXPECT_EQ(KindOf(results[0]), ErrorKind::kPeerLost);
  EXPECT_NE(MessageOf(results[0]).find("rank 1 did not open its data connection"),
            std::string::npos)
      << results[0];
  EXPECT_NE(MessageOf(results[1]).find("rank 0 cannot be reached"), std::string::npos)
      << results[1];
}

TEST_P(EveryFabric, NamesTheRankThatDoesNotCome) {
  Open(3);
  fabrics_.pop_back();
  const std::vector<Status> results = ConnectAll(300);
  for (const Status& result : results)
    EXPECT_NE(MessageOf(result).find("rank 2"), std::string::npos) << result;
}

TEST_P(EveryFabric, StopsWhenInterrupted) {
  FabricOptions options = FabricOf(GetParam(), 0, 2, 42);
  options.interrupted = [] { return ModelError("enough"); };
  auto fabric = OpenFabric(options);
  ASSERT_TRUE(fabric.ok());
  const auto mesh = (*fabric)->Connect({(*fabric)->address(), "unused"}, Deadline::After(60'000));
  EXPECT_EQ(MessageOf(mesh.status()), "enough");
}

INSTANTIATE_TEST_SUITE_P(Fabrics, EveryFabric, ::testing::Values("tcp", "shm"),
                         [](const auto& values) { return std::string(values.param); });

TEST(Fabric, TriesTheNextAddressOfAPeer) {
  FabricOptions zero = FabricOf("tcp", 0, 2, 42);
  // The second address is this machine's, the first one nobody's.
  zero.hosts = {"127.0.0.1", "127.0.0.2"};
  auto first = OpenFabric(zero);
  auto second = OpenFabric(FabricOf("tcp", 1, 2, 42));
  ASSERT_TRUE(first.ok() && second.ok());
  const std::string real = (*first)->address();
  const std::vector<std::string> addresses = {"127.0.0.1:1," + real.substr(real.find(',') + 1),
                                              (*second)->address()};
  Status accepted;
  std::thread acceptor(
      [&] { accepted = (*first)->Connect(addresses, Deadline::After(10'000)).status(); });
  EXPECT_TRUE((*second)->Connect(addresses, Deadline::After(10'000)).ok());
  acceptor.join();
  EXPECT_TRUE(accepted.ok()) << accepted;
}

TEST(Endpoints, AreParsedStrictly) {
  EXPECT_EQ(ParseEndpoint("10.0.0.1:80")->port, 80);
  EXPECT_EQ(ParseEndpoint("[::1]:80")->host, "::1");
  EXPECT_EQ(ParseEndpoint("[::1]:80")->Text(), "[::1]:80");
  for (const char* text : {"", "host", "host:", ":80", "host:x", "host:-1", "host:65536", "::1:80",
                           "host:80x", "[[]]:2", "[]:80", "a b:80", "a\n:80"}) {
    EXPECT_FALSE(ParseEndpoint(text).ok()) << text;
  }
}

TEST(Interfaces, LoopbackIsListed) {
  EXPECT_EQ(*AddressOfInterface("lo"), "127.0.0.1");
  EXPECT_FALSE(AddressOfInterface("nonsense").ok());
}

}  // namespace
}  // namespace lockstep
