#include "launcher/world.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <fstream>

#include "runtime/base/os.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

ClusterNode Node(const std::string& host, int port = 0) {
  ClusterNode node;
  node.host = host;
  node.port = port;
  node.name = host;
  return node;
}

struct Case {
  Options options;
  Surroundings around;
  bool worker = false;

  Case() {
    options.config = "c.yaml";
    around.is_own_host = [](const std::string&) { return false; };
  }
  StatusOr<World> Decide() const { return DecideWorld(options, around, worker); }
  std::string Error() const {
    const StatusOr<World> world = Decide();
    if (world.ok()) return "accepted";
    EXPECT_EQ(ExitCode(world.status()), 2);
    return MessageOf(world.status());
  }
  void UnderMpirun(int rank, int size) {
    around.under_mpirun = true;
    around.mpi_rank = rank;
    around.mpi_size = size;
  }
};

std::string SecretFile() {
  const std::string path = testing::TempDir() + "/world_test.secret";
  std::ofstream(path) << "0123456789abcdef0123456789abcdef";
  EXPECT_EQ(chmod(path.c_str(), 0600), 0);
  return path;
}

TEST(World, WithoutAnythingItIsASingleRank) {
  const StatusOr<World> world = Case().Decide();
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ(world->origin, WorldOrigin::kSingle);
  EXPECT_EQ(world->size, 1);
  EXPECT_THAT(world->shares, ElementsAre(1));
}

TEST(World, RanksAreSpawnedWithASecretOfTheirOwn) {
  Case c;
  c.options.ranks = 3;
  c.options.shares = {3, 2, 1};
  const StatusOr<World> world = c.Decide();
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ(world->origin, WorldOrigin::kSpawner);
  EXPECT_EQ(world->rank, 0);
  EXPECT_EQ(world->size, 3);
  EXPECT_EQ(world->ranks_on_this_host, 3);
  EXPECT_GE(world->secret.size(), 32u);
  EXPECT_NE(world->secret, c.Decide()->secret);
}

TEST(World, ASpawnedRankIsWhatItsTicketSays) {
  Case c;
  c.options.ranks = 3;
  c.around.ticket = SpawnTicket{.rank = 2, .size = 3, .rendezvous = "127.0.0.1:9", .secret = "s"};
  const StatusOr<World> world = c.Decide();
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ(world->origin, WorldOrigin::kSpawned);
  EXPECT_EQ(world->rank, 2);
  EXPECT_EQ(world->rendezvous, "127.0.0.1:9");
  EXPECT_EQ(world->secret, "s");
}

TEST(World, UnderMpirunItIsWhatMpirunSays) {
  Case c;
  c.UnderMpirun(1, 2);
  c.options.collective = "mpi";
  c.options.ranks = 2;
  const StatusOr<World> world = c.Decide();
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ(world->origin, WorldOrigin::kMpirun);
  EXPECT_EQ(world->rank, 1);
  EXPECT_EQ(world->size, 2);
  EXPECT_EQ(world->rendezvous, "");
}

TEST(World, CollectiveMpiRunsAgainUnderMpirun) {
  Case c;
  c.options.collective = "mpi";
  c.options.ranks = 4;
  EXPECT_EQ(c.Decide()->origin, WorldOrigin::kReexec);
  EXPECT_EQ(c.Decide()->size, 4);
}

TEST(World, LoopbackNodesAreSpawnedUnlessARankIsGiven) {
  Case c;
  c.around.nodes = {Node("127.0.0.1", 4000), Node("localhost")};
  EXPECT_EQ(c.Decide()->origin, WorldOrigin::kSpawner);
  EXPECT_EQ(c.Decide()->size, 2);
  c.options.rank = 1;
  const StatusOr<World> world = c.Decide();
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ(world->origin, WorldOrigin::kNodes);
  EXPECT_EQ(world->rank, 1);
  EXPECT_EQ(world->rendezvous, "127.0.0.1:4000");
}

TEST(World, ANodeFindsItsRankByItsOwnAddress) {
  Case c;
  c.around.nodes = {Node("spark-1"), Node("spark-2")};
  c.around.nodes[1].threads = 7;
  c.around.nodes[1].interface = "eth7";
  c.around.is_own_host = [](const std::string& host) { return host == "spark-2"; };
  c.options.secret_file = SecretFile();
  c.worker = true;
  const StatusOr<World> world = c.Decide();
  ASSERT_TRUE(world.ok()) << world.status();
  EXPECT_EQ(world->rank, 1);
  EXPECT_EQ(world->rendezvous, "spark-1:29517");
  EXPECT_EQ(world->threads, 7);
  EXPECT_EQ(world->interface, "eth7");
  EXPECT_EQ(world->secret, "0123456789abcdef0123456789abcdef");
}

TEST(World, ANodeThatIsNoneOrSeveralOfTheListMustSayItsRank) {
  Case c;
  c.around.nodes = {Node("spark-1"), Node("spark-2")};
  EXPECT_THAT(c.Error(), AllOf(HasSubstr("spark-1, spark-2"), HasSubstr("--rank")));
  c.around.is_own_host = [](const std::string&) { return true; };
  EXPECT_THAT(c.Error(), AllOf(HasSubstr("both this machine"), HasSubstr("--rank")));
}

TEST(World, BeyondLoopbackASecretIsMandatory) {
  Case c;
  c.around.nodes = {Node("spark-1"), Node("spark-2")};
  c.options.rank = 0;
  EXPECT_THAT(c.Error(), HasSubstr("--secret-file"));
  c.options.secret_file = "/nowhere/secret";
  EXPECT_THAT(c.Error(), HasSubstr("/nowhere/secret"));
}

TEST(World, ContradictionsNameBothValues) {
  {
    Case c;
    c.UnderMpirun(0, 2);
    c.options.ranks = 3;
    EXPECT_THAT(c.Error(), AllOf(HasSubstr("--ranks is 3"), HasSubstr("mpirun started 2")));
  }
  {
    Case c;
    c.UnderMpirun(0, 2);
    c.around.nodes = {Node("a"), Node("b"), Node("c")};
    EXPECT_THAT(c.Error(), AllOf(HasSubstr("lists 3"), HasSubstr("started 2")));
  }
  {
    Case c;
    c.UnderMpirun(0, 2);
    c.options.rank = 1;
    EXPECT_THAT(c.Error(), AllOf(HasSubstr("--rank is 1"), HasSubstr("says 0")));
  }
  {
    Case c;
    c.around.nodes = {Node("127.0.0.1"), Node("127.0.0.1")};
    c.options.ranks = 4;
    EXPECT_THAT(c.Error(), AllOf(HasSubstr("--ranks is 4"), HasSubstr("lists 2")));
    c.options.ranks = 0;
    c.options.rank = 2;
    EXPECT_THAT(c.Error(), AllOf(HasSubstr("--rank is 2"), HasSubstr("0 .. 1")));
  }
  {
    Case c;
    c.options.ranks = 2;
    c.options.shares = {1, 2, 3};
    EXPECT_THAT(c.Error(), AllOf(HasSubstr("3"), HasSubstr("2"), HasSubstr("share")));
  }
  {
    Case c;
    c.options.ranks = 2;
    c.options.rendezvous = "10.0.0.1:99";
    EXPECT_THAT(c.Error(), HasSubstr("10.0.0.1:99"));
  }
}

TEST(World, ARankWithoutAWorldIsRefused) {
  Case c;
  c.options.rank = 1;
  EXPECT_THAT(c.Error(), HasSubstr("--rendezvous"));
  c.options.ranks = 2;
  c.options.rendezvous = "nonsense:port";
  EXPECT_THAT(c.Error(), HasSubstr("--rendezvous"));
  c.options.rendezvous = "127.0.0.1:999";
  EXPECT_EQ(c.Decide()->origin, WorldOrigin::kNodes);
  c.options.rank = 5;
  EXPECT_THAT(c.Error(), AllOf(HasSubstr("5"), HasSubstr("2")));
}

TEST(World, AWorkerIsNeverAlone) {
  Case c;
  c.worker = true;
  EXPECT_THAT(c.Error(), HasSubstr("--config"));
  c.around.nodes = {Node("127.0.0.1"), Node("127.0.0.1")};
  EXPECT_THAT(c.Error(), HasSubstr("--rank"));
}

TEST(World, MpiOverNodesSaysHowToStart) {
  Case c;
  c.around.nodes = {Node("a"), Node("b")};
  c.options.collective = "mpi";
  c.options.rank = 0;
  EXPECT_THAT(c.Error(), HasSubstr("mpirun -n 2 -H a,b"));
}

TEST(World, MpirunIsCalledWithWhatItNeeds) {
  EXPECT_THAT(MpirunCommand(2, false, {"lockstep", "run", "a b"}),
              ElementsAre("mpirun", "--oversubscribe", "-n", "2", "lockstep", "run", "a b"));
  EXPECT_THAT(MpirunCommand(5, true, {"x"}),
              ElementsAre("mpirun", "--oversubscribe", "--allow-run-as-root", "-n", "5", "x"));
}

TEST(World, CpusAreSharedInContiguousParts) {
  EXPECT_THAT(ShareOfCpus({0, 1, 2, 3, 4}, 0, 2), ElementsAre(0, 1));
  EXPECT_THAT(ShareOfCpus({0, 1, 2, 3, 4}, 1, 2), ElementsAre(2, 3, 4));
  EXPECT_THAT(ShareOfCpus({4, 6}, 0, 1), ElementsAre(4, 6));
  EXPECT_THAT(ShareOfCpus({4, 6}, 1, 2), ElementsAre(6));
  // More ranks than CPUs: nobody is tied down, the system shares them out.
  EXPECT_THAT(ShareOfCpus({4, 6}, 2, 3), ElementsAre(4, 6));
}

TEST(World, ARankBoundToOneCoreByMpirunTakesItsShareOfAll) {
  const std::vector<int> before = os::AllowedCpus();
  if (before.size() < 2) GTEST_SKIP() << "one CPU only";
  ASSERT_TRUE(os::SetAffinity({before[0]}).ok());
  World world;
  world.origin = WorldOrigin::kMpirun;
  const StatusOr<int> threads = TakeCores(world, 0, 1);
  ASSERT_TRUE(threads.ok()) << threads.status();
  EXPECT_EQ(*threads, static_cast<int>(os::AllowedCpus().size()));
  EXPECT_GE(*threads, 2);
  const int half = *TakeCores(world, 1, 2);
  EXPECT_EQ(half, static_cast<int>(os::AllowedCpus().size()));
  EXPECT_LT(os::AllowedCpus().size(), before.size());
  EXPECT_EQ(*TakeCores(world, 0, 1000), 1);
  world.threads = 3;
  EXPECT_EQ(*TakeCores(world, 0, 1), 3);
  ASSERT_TRUE(os::SetAffinity(before).ok());
}

TEST(World, OwnHostsAreRecognised) {
  EXPECT_TRUE(IsOwnHost("127.0.0.1"));
  EXPECT_TRUE(IsOwnHost(os::HostName()));
  EXPECT_FALSE(IsOwnHost("192.0.2.1"));
  EXPECT_FALSE(IsOwnHost("no-such-host.invalid"));
}

TEST(World, StagesArePlacesOfEquallyManyRanks) {
  Case test;
  test.UnderMpirun(4, 6);
  test.options.mode = "pipeline";
  World world = test.Decide().value();
  EXPECT_EQ(world.stages, 6);  // as many as ranks
  EXPECT_EQ(world.stage(), 4);
  EXPECT_EQ(world.rank_in_stage(), 0);
  EXPECT_THAT(world.shares, ElementsAre(1));
  EXPECT_TRUE(world.stage_shares.empty());
  test.options.stages = 2;
  test.options.shares = {2, 1};
  world = test.Decide().value();
  EXPECT_EQ(world.stage(), 1);
  EXPECT_EQ(world.rank_in_stage(), 1);
  EXPECT_THAT(world.shares, ElementsAre(1, 1, 1));
  EXPECT_THAT(world.stage_shares, ElementsAre(2, 1));
  test.options.shares = {2, 1, 1};
  EXPECT_THAT(test.Error(), HasSubstr("one per stage: 2"));
  test.options.shares.clear();
  test.options.stages = 4;
  EXPECT_THAT(test.Error(), HasSubstr("6 ranks cannot stand in 4 stages"));
  test.options.stages = 12;
  EXPECT_THAT(test.Error(), HasSubstr("6 ranks cannot stand in 12 stages"));
  test.options.mode = "tensor";
  EXPECT_THAT(test.Error(), HasSubstr("--mode pipeline"));
  test.options.stages = 0;
  test.options.stage_link = "tcp";
  EXPECT_THAT(test.Error(), HasSubstr("--stage-link is that of a pipeline"));
}

TEST(World, OneStageIsTensorMode) {
  Case test;
  test.UnderMpirun(1, 2);
  test.options.mode = "pipeline";
  test.options.stages = 1;
  test.options.shares = {3, 1};
  const World world = test.Decide().value();
  EXPECT_EQ(world.stages, 1);
  EXPECT_EQ(world.rank_in_stage(), 1);
  EXPECT_THAT(world.shares, ElementsAre(3, 1));
}

}  // namespace
}  // namespace lockstep
