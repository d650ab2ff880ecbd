#include "collectives/bootstrap.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <atomic>
#include <cstdlib>
#include <fstream>

#include "tests/collectives/ranks.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

Status Nothing(Membership&) { return OkStatus(); }

std::vector<std::byte> Bytes(const std::string& text) {
  const auto span = std::as_bytes(std::span(text));
  return {span.begin(), span.end()};
}

#define EXPECT_ERROR(status, kind, text)                                             \
  do {                                                                               \
    EXPECT_FALSE((status).ok());                                                     \
    EXPECT_EQ(static_cast<int>(KindOf(status)), static_cast<int>(kind)) << (status); \
    EXPECT_NE(MessageOf(status).find(text), std::string::npos) << (status);          \
  } while (false)

TEST(Bootstrap, ASingleProcessNeedsNobody) {
  const StatusOr<std::unique_ptr<Membership>> membership = Bootstrap({});
  ASSERT_TRUE(membership.ok()) << membership.status();
  EXPECT_EQ((*membership)->ranks().size(), 1u);
  EXPECT_EQ((*membership)->local_size(), 1);
  EXPECT_TRUE((*membership)->Health().ok());
  EXPECT_TRUE((*membership)->OpenGroup().ok());
}

TEST(Bootstrap, RanksKnowEachOther) {
  const std::vector<Status> results =
      RunAsThreads(LocalRanks(3, "tcp"), [](Membership& membership) -> Status {
        EXPECT_EQ(membership.ranks().size(), 3u);
        for (int rank = 0; rank < 3; ++rank) {
          EXPECT_EQ(membership.ranks()[rank].rank, rank);
          EXPECT_EQ(membership.ranks()[rank].pid, getpid());
          EXPECT_EQ(membership.ranks()[rank].address, "127.0.0.1");
          EXPECT_FALSE(membership.ranks()[rank].host.empty());
        }
        EXPECT_EQ(membership.local_size(), 3);
        EXPECT_TRUE(membership.Health().ok());
        return membership.OpenGroup().status();
      });
  for (const Status& result : results) EXPECT_TRUE(result.ok()) << result;
}

TEST(Bootstrap, RankZeroHearsWhatTheOthersCountAndHowFarTheyAre) {
  std::atomic<bool> heard{false};
  const std::vector<Status> results =
      RunAsThreads(LocalRanks(3, "tcp"), [&](Membership& membership) -> Status {
        LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Group> group, membership.OpenGroup());
        const auto rank = static_cast<uint64_t>(group->rank());
        membership.meter().SetLoaded(
            {.memory_rate = 7000 + rank, .weight_bytes = 1000 + rank, .threads = 3});
        membership.meter().AddDecodeStep(static_cast<int64_t>(10 + rank), {20, 4}, 500 + rank);
        const Deadline deadline = Deadline::After(20'000);
        while (rank == 0 && !heard && !deadline.Passed()) {
          std::this_thread::sleep_for(std::chrono::milliseconds(20));
          const std::vector<RankNews> news = membership.News();
          heard = news.size() == 3 && news[0].round_trip_ns < 0;
          for (uint64_t r = 0; r < 3 && heard; ++r) {
            const RankReport& report = news[r].report;
            heard = report.weight_bytes == 1000 + r && report.steps == 1 &&
                    report.compute_ns == 10 + r && report.exchange_ns == 20 &&
                    report.exchanges == 4 && report.read_bytes == 500 + r &&
                    report.memory_rate == 7000 + r && report.threads == 3 &&
                    report.resident_bytes > 0;
            // Within one process a round trip is short; 0 would be none at all.
            if (r > 0)
              heard = heard && news[r].round_trip_ns > 0 && news[r].round_trip_ns < 1'000'000'000;
          }
        }
        return Barrier(*group);
      });
  for (const Status& result : results) EXPECT_TRUE(result.ok()) << result;
  EXPECT_TRUE(heard);
}

TEST(Bootstrap, LateRanksAreWaitedFor) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  Status first, second;
  std::thread zero([&] {
    const auto membership = Bootstrap(all[0]);
    first = membership.status();
    if (membership.ok()) (*membership)->Leave();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  const auto membership = Bootstrap(all[1]);
  second = membership.status();
  if (membership.ok()) (*membership)->Leave();
  zero.join();
  EXPECT_TRUE(first.ok()) << first;
  EXPECT_TRUE(second.ok()) << second;
}

TEST(Bootstrap, ADifferentSettingIsRefusedOnAllRanksWithBothValues) {
  std::vector<BootstrapOptions> all = LocalRanks(3, "tcp");
  for (BootstrapOptions& options : all) {
    options.settings = {
        {"source version", "0.1.0", "install one build"},
        {"model digest", options.rank == 2 ? "bbbb" : "aaaa", "copy the same model to every node"}};
  }
  const std::vector<Status> results = RunAsThreads(all, Nothing);
  for (const Status& result : results) {
    EXPECT_ERROR(result, ErrorKind::kUsage, "model digest differs: rank 0 (");
    EXPECT_ERROR(result, ErrorKind::kUsage, "has aaaa, rank 2 (");
    EXPECT_ERROR(result, ErrorKind::kUsage, "has bbbb; copy the same model to every node");
  }
}

TEST(Bootstrap, ValuesThatDifferLateAreStillSeen) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  for (BootstrapOptions& options : all) {
    options.settings = {
        {"shares", std::string(500, 'x') + (options.rank == 1 ? "1" : "0"), "use one YAML"}};
  }
  for (const Status& result : RunAsThreads(all, Nothing))
    EXPECT_ERROR(result, ErrorKind::kUsage, "shares differs");
}

TEST(Bootstrap, AMissingOrExtraSettingIsADifference) {
  for (const int rank : {0, 1}) {
    std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
    all[rank].settings = {{"wire", "bf16", "start all ranks with the same flags"}};
    for (const Status& result : RunAsThreads(all, Nothing))
      EXPECT_ERROR(result, ErrorKind::kUsage, "wire differs");
  }
}

TEST(Bootstrap, DifferentCollectivesAreRefused) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  all[1].collective = "shm";
  for (const Status& result : RunAsThreads(all, Nothing)) {
    EXPECT_ERROR(result, ErrorKind::kUsage, "--collective differs");
  }
}

TEST(Bootstrap, AWrongSecretIsRefusedOnBothSides) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  all[0].start_timeout_ms = 1500;
  all[1].secret = "another secret of this test";
  const std::vector<Status> results = RunAsThreads(all, Nothing);
  EXPECT_ERROR(results[0], ErrorKind::kUsage, "does not hold the same cluster secret");
  EXPECT_ERROR(results[0], ErrorKind::kUsage, "rank 1 of 2 did not come");
  EXPECT_ERROR(results[1], ErrorKind::kUsage, "holds another cluster secret than this rank 1");
}

TEST(Bootstrap, ARankWithoutTheSecretDoesNotDisturbTheOthers) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  BootstrapOptions stranger = all[1];
  stranger.secret = "guessed";
  Status refused;
  std::thread guess([&] { refused = Bootstrap(stranger).status(); });
  std::vector<Status> results(2);
  std::thread zero([&] {
    const auto membership = Bootstrap(all[0]);
    results[0] = membership.status();
    if (membership.ok()) (*membership)->Leave();
  });
  guess.join();
  {
    const auto membership = Bootstrap(all[1]);
    results[1] = membership.status();
    if (membership.ok()) (*membership)->Leave();
  }
  zero.join();
  EXPECT_ERROR(refused, ErrorKind::kUsage, "secret");
  for (const Status& result : results) EXPECT_TRUE(result.ok()) << result;
}

TEST(Bootstrap, GarbageAndSilenceDoNotDisturbTheRanks) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  const StatusOr<Endpoint> where = ParseEndpoint(all[0].rendezvous);
  ASSERT_TRUE(where.ok());
  std::vector<Status> results(2);
  std::thread zero([&] {
    const auto membership = Bootstrap(all[0]);
    results[0] = membership.status();
    if (membership.ok()) (*membership)->Leave();
  });
  std::vector<UniqueFd> strangers;
  for (int i = 0; i < 100; ++i) {
    StatusOr<UniqueFd> stranger = ConnectTcp(*where, Deadline::After(2000));
    ASSERT_TRUE(stranger.ok()) << stranger.status();
    std::string text;
    if (i % 4 == 1) text = "GET / HTTP/1.1\r\nHost: x\r\n\r\n" + std::string(200, 'g');
    if (i % 4 == 2) text = "LOCKSTEP";  // and then nothing
    if (i % 4 == 3)
      text = "LOCKSTEP" + std::string("\1\0\0\0", 4) + std::string(68, '\xff');  // a huge body
    (void)SendAll(stranger->get(), Bytes(text), Deadline::After(2000));
    strangers.push_back(std::move(*stranger));
  }
  const auto membership = Bootstrap(all[1]);
  results[1] = membership.status();
  if (membership.ok()) (*membership)->Leave();
  zero.join();
  for (const Status& result : results) EXPECT_TRUE(result.ok()) << result;
}

TEST(Bootstrap, ARankStartedTwiceIsRefused) {
  std::vector<BootstrapOptions> all = LocalRanks(3, "tcp");
  all[2].rank = 1;
  for (const Status& result : RunAsThreads(all, Nothing)) {
    EXPECT_ERROR(result, ErrorKind::kUsage, "rank 1 was started twice");
  }
}

TEST(Bootstrap, AnotherNumberOfRanksIsRefused) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  all[1].size = 3;
  for (const Status& result : RunAsThreads(all, Nothing)) {
    EXPECT_ERROR(result, ErrorKind::kUsage, "was started for 3 ranks");
  }
}

TEST(Bootstrap, MissingRanksAreNamed) {
  std::vector<BootstrapOptions> all = LocalRanks(4, "tcp");
  for (BootstrapOptions& options : all) options.start_timeout_ms = 300;
  const std::string where = all[0].rendezvous;
  all.erase(all.begin() + 3);
  all.erase(all.begin() + 1);
  for (const Status& result : RunAsThreads(all, Nothing)) {
    EXPECT_ERROR(result, ErrorKind::kPeerLost,
                 "ranks 1, 3 of 4 did not come to rank 0 at " + where);
  }
}

TEST(Bootstrap, AnAbsentRankZeroIsNamedWithItsAddress) {
  std::string rendezvous;
  const StatusOr<int> listener = ListenForRanks("127.0.0.1", &rendezvous);
  ASSERT_TRUE(listener.ok());
  (void)close(*listener);
  BootstrapOptions options = LocalOptions(1, 2, "tcp");
  options.rendezvous = rendezvous;
  options.start_timeout_ms = 200;
  const Status result = Bootstrap(options).status();
  EXPECT_ERROR(result, ErrorKind::kPeerLost, "rank 1 did not find rank 0 at " + rendezvous);
}

TEST(Bootstrap, SomethingElseAtTheAddressIsNotRankZero) {
  std::string rendezvous;
  const StatusOr<int> listener = ListenForRanks("127.0.0.1", &rendezvous);
  ASSERT_TRUE(listener.ok());
  std::atomic<bool> stop{false};
  std::thread server([&] {
    std::vector<UniqueFd> accepted;
    while (!stop) {
      UniqueFd socket = AcceptPending(*listener);
      if (socket.valid()) {
        (void)SendSome(socket.get(),
                       Bytes("SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3 and more text to fill"));
        accepted.push_back(std::move(socket));
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  });
  BootstrapOptions options = LocalOptions(1, 2, "tcp");
  options.rendezvous = rendezvous;
  options.start_timeout_ms = 200;
  const Status result = Bootstrap(options).status();
  stop = true;
  server.join();
  (void)close(*listener);
  EXPECT_ERROR(result, ErrorKind::kUsage, "something else than lockstep answers there");
}

TEST(Bootstrap, APortInUseIsNamedWithTheFlag) {
  std::string rendezvous;
  const StatusOr<int> listener = ListenForRanks("127.0.0.1", &rendezvous);
  ASSERT_TRUE(listener.ok());
  BootstrapOptions options = LocalOptions(0, 2, "tcp");
  options.rendezvous = rendezvous;
  const Status result = Bootstrap(options).status();
  (void)close(*listener);
  EXPECT_ERROR(result, ErrorKind::kUsage, "already in use");
  EXPECT_ERROR(result, ErrorKind::kUsage, "--rendezvous");
  EXPECT_ERROR(result, ErrorKind::kUsage, rendezvous.substr(rendezvous.find(':') + 1));
}

TEST(Bootstrap, AnAddressOfAnotherMachineIsRefusedForRankZero) {
  BootstrapOptions options = LocalOptions(0, 2, "tcp");
  options.rendezvous = "192.0.2.1:29500";  // a documentation address
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage,
               "this machine does not have that address");
}

TEST(Bootstrap, WithoutASecretOnlyLoopbackIsAllowed) {
  BootstrapOptions options = LocalOptions(0, 2, "tcp");
  options.secret.clear();
  options.rendezvous = "0.0.0.0:0";
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "--secret-file");
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  for (BootstrapOptions& each : all) each.secret.clear();
  for (const Status& result : RunAsThreads(all, Nothing)) EXPECT_TRUE(result.ok()) << result;
}

TEST(Bootstrap, WrongOptionsAreRefused) {
  BootstrapOptions options = LocalOptions(0, 2, "tcp");
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "--rendezvous");
  options.rendezvous = "nowhere";
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "host:port");
  options.rendezvous = "127.0.0.1:70000";
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "65535");
  options.rendezvous = "127.0.0.1:0";
  options.collective = "carrier pigeon";
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "tcp, shm, rdma, mpi or nccl");
  options.collective = "mpi";
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "mpirun -n 2");
  options.verify_exchanges = true;
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "--verify-exchanges works over tcp");
  options.collective = "nccl";
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "not over the messages of NCCL");
  options.verify_exchanges = false;
  options.collective = "tcp";
  options.rank = 2;
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "rank 2 does not exist");
  options.rank = 0;
  options.interface = "eth77";
  EXPECT_ERROR(Bootstrap(options).status(), ErrorKind::kUsage, "lo (127.0.0.1)");
}

// No library, no GPU, too few of them, or a build without it.
TEST(Bootstrap, NcclThatCannotStartSaysWhatToUseInstead) {
  const std::vector<Status> results =
      RunGroups(LocalRanks(2, "nccl"), [](Group& group) { return Barrier(group); });
  if (results[0].ok()) GTEST_SKIP() << "this machine has two GPUs and NCCL";
  for (const Status& result : results) {
    EXPECT_ERROR(result, ErrorKind::kUsage, "use --collective tcp");
  }
}

TEST(Bootstrap, AChosenInterfaceCarriesTheData) {
  std::vector<BootstrapOptions> all = LocalRanks(2, "tcp");
  for (BootstrapOptions& options : all) options.interface = "lo";
  const std::vector<Status> results = RunGroups(all, [](Group& group) { return Barrier(group); });
  for (const Status& result : results) EXPECT_TRUE(result.ok()) << result;
}

TEST(Bootstrap, ARankThatFailsToOpenItsGroupTellsAll) {
  const std::vector<Status> results =
      RunAsThreads(LocalRanks(2, "tcp"), [](Membership& membership) -> Status {
        if (membership.local_rank() == 0 && membership.ranks()[0].rank == 0) {
          static std::atomic<int> turn{0};
          if (turn.fetch_add(1) == 0) {
            membership.Abort(UsageError("no such device"));
            return membership.Health();
          }
        }
        return membership.OpenGroup().status();
      });
  for (const Status& result : results) EXPECT_ERROR(result, ErrorKind::kUsage, "no such device");
}

TEST(Mpirun, IsDetectedFromItsEnvironment) {
  int rank = 0, size = 0, local_rank = 0, local_size = 0;
  unsetenv("OMPI_COMM_WORLD_RANK");
  unsetenv("OMPI_COMM_WORLD_SIZE");
  EXPECT_FALSE(DetectMpirun(&rank, &size, &local_rank, &local_size));
  setenv("OMPI_COMM_WORLD_RANK", "2", 1);
  setenv("OMPI_COMM_WORLD_SIZE", "4", 1);
  setenv("OMPI_COMM_WORLD_LOCAL_RANK", "0", 1);
  setenv("OMPI_COMM_WORLD_LOCAL_SIZE", "2", 1);
  EXPECT_TRUE(DetectMpirun(&rank, &size, &local_rank, &local_size));
  EXPECT_EQ(rank, 2);
  EXPECT_EQ(size, 4);
  EXPECT_EQ(local_rank, 0);
  EXPECT_EQ(local_size, 2);
  setenv("OMPI_COMM_WORLD_RANK", "4", 1);
  EXPECT_FALSE(DetectMpirun(&rank, &size, &local_rank, &local_size));
  setenv("OMPI_COMM_WORLD_RANK", "two", 1);
  EXPECT_FALSE(DetectMpirun(&rank, &size, &local_rank, &local_size));
  for (const char* name : {"RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE"}) {
    unsetenv((std::string("OMPI_COMM_WORLD_") + name).c_str());
  }
}

class SecretFile : public ::testing::Test {
 protected:
  std::string Write(const std::string& text, mode_t mode) {
    const std::string path = ::testing::TempDir() + "/lockstep_secret_" + std::to_string(getpid());
    (void)unlink(path.c_str());
    std::ofstream(path) << text;
    (void)chmod(path.c_str(), mode);
    return path;
  }
};

TEST_F(SecretFile, IsReadWithoutItsNewline) {
  const std::string path = Write("0123456789abcdef0123\n", 0600);
  const StatusOr<std::string> secret = ReadSecretFile(path);
  ASSERT_TRUE(secret.ok()) << secret.status();
  EXPECT_EQ(*secret, "0123456789abcdef0123");
}

TEST_F(SecretFile, ThatOthersCanReadIsRefused) {
  const std::string path = Write("0123456789abcdef0123\n", 0640);
  EXPECT_ERROR(ReadSecretFile(path).status(), ErrorKind::kUsage, "chmod 600 " + path);
}

TEST_F(SecretFile, ThatIsShortLongAbsentOrNoFileIsRefused) {
  EXPECT_ERROR(ReadSecretFile(Write("short", 0600)).status(), ErrorKind::kUsage, "at least 16");
  EXPECT_ERROR(ReadSecretFile(Write("", 0600)).status(), ErrorKind::kUsage, "at least 16");
  EXPECT_ERROR(ReadSecretFile(Write(std::string(5000, 'x'), 0600)).status(), ErrorKind::kUsage,
               "4096");
  EXPECT_ERROR(ReadSecretFile("/nowhere/at/all").status(), ErrorKind::kUsage, "/nowhere/at/all");
  EXPECT_ERROR(ReadSecretFile("/tmp").status(), ErrorKind::kUsage, "regular file");
}

TEST(Secret, IsLongAndNeverTheSame) {
  EXPECT_EQ(GenerateSecret().size(), 64u);
  EXPECT_NE(GenerateSecret(), GenerateSecret());
}

}  // namespace
}  // namespace lockstep
