// What `lockstep doctor` concludes, from facts that are made up here.
#include "launcher/commands/diagnosis.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Three machines with 10 Gb/s each and nothing wrong.
class DiagnosisTest : public ::testing::Test {
 protected:
  DiagnosisTest() {
    for (const auto& [first, second] : {std::pair{0, 1}, {0, 2}, {1, 2}}) {
      const LinkEnd end{"10.0.0.1", "eth0", "", 9000, 10'000};
      links_.push_back({.transport = "tcp",
                        .ranks = {first, second},
                        .ends = {end, end},
                        .p50_us = 30,
                        .p99_us = 40,
                        .gb_per_s = 1.1,
                        .clock_ahead_ms = 0.2,
                        .clock_within_ms = 0.03});
    }
  }

  std::vector<std::string> Findings() const { return Diagnose(nodes_, links_).findings; }

  std::vector<NodeFacts> nodes_ = {
      {"rank 0 (a, pid 1)", "none"}, {"rank 1 (b, pid 2)", "none"}, {"rank 2 (c, pid 3)", "none"}};
  std::vector<LinkFacts> links_;
};

TEST_F(DiagnosisTest, FindsNothingWhereNothingIsWrong) {
  EXPECT_THAT(Findings(), IsEmpty());
  EXPECT_EQ(Diagnose(nodes_, links_).transport, "tcp");
}

TEST_F(DiagnosisTest, TheWorstPairDecidesWhichTransportIsUsed) {
  for (size_t i = 0; i < 3; ++i) {
    links_.push_back(links_[i]);
    links_.back().transport = "rdma";
    links_.back().p50_us = 6;
  }
  EXPECT_EQ(Diagnose(nodes_, links_).transport, "rdma");
  EXPECT_THAT(Diagnose(nodes_, links_).why,
              AllOf(HasSubstr("rdma 6.0 us"), HasSubstr("tcp 30.0 us")));
  links_.back().p50_us = 31;
  EXPECT_EQ(Diagnose(nodes_, links_).transport, "tcp");
}

TEST_F(DiagnosisTest, TheSlowestLinkIsOneOfTheTransportThatIsUsed) {
  links_[2].gb_per_s = 0.9;
  links_.push_back(links_[0]);
  links_.back().transport = "rdma";
  links_.back().p50_us = 90;
  links_.back().gb_per_s = 0.1;
  const Diagnosis diagnosis = Diagnose(nodes_, links_);
  EXPECT_EQ(diagnosis.transport, "tcp");
  EXPECT_EQ(diagnosis.slowest, &links_[2]);
}

TEST_F(DiagnosisTest, AnInterfaceWithALowMtuIsNamedOnce) {
  for (const size_t link : {1, 2}) {  // those of rank 2
    links_[link].ends[1].mtu = 1500;
    links_[link].ends[1].interface = "eth7";
  }
  EXPECT_THAT(Findings(), ElementsAre(AllOf(HasSubstr("rank 2 (c, pid 3): the MTU of eth7 is 1500"),
                                            HasSubstr("ip link set dev eth7 mtu 9000"))));
}

TEST_F(DiagnosisTest, ALinkFarBelowItsNominalSpeedIsNamedWithItsShare) {
  links_[0].ends[0].megabits = 100'000;  // the other end limits it
  links_[0].gb_per_s = 0.5;
  EXPECT_EQ(NominalGbPerS(links_[0]), 1.25);
  EXPECT_THAT(Findings(), ElementsAre(HasSubstr("40 % of the 1.25 GB/s")));
  links_[0].ends[1].megabits = 0;
  EXPECT_THAT(Findings(), IsEmpty());
}

TEST_F(DiagnosisTest, LinksThatAreNotUsedAreNotJudged) {
  for (size_t i = 0; i < 3; ++i) {
    links_.push_back(links_[i]);
    links_.back().transport = "rdma";
    links_.back().p50_us = 6;
    links_[i].gb_per_s = 0.1;
  }
  EXPECT_THAT(Findings(), IsEmpty());
}

TEST_F(DiagnosisTest, APairThatAnswersMuchLaterThanTheOthersIsNamed) {
  links_[1].p50_us = 100;
  EXPECT_THAT(Findings(), ElementsAre(AllOf(HasSubstr("rank 0 (a, pid 1) and rank 2 (c, pid 3)"),
                                            HasSubstr("100.0 us"), HasSubstr("30.0 us"))));
}

TEST_F(DiagnosisTest, ClocksThatDifferAreNamedOncePerPair) {
  for (size_t i = 0; i < 3; ++i) {
    links_.push_back(links_[i]);
    links_.back().transport = "rdma";
  }
  links_[0].clock_ahead_ms = links_[3].clock_ahead_ms = -2500;
  EXPECT_THAT(
      Findings(),
      ElementsAre(HasSubstr("rank 1 (b, pid 2) is 2.5 s behind that of rank 0 (a, pid 1)")));
}

TEST_F(DiagnosisTest, ARankWithoutRdmaAmongOthersThatHaveItIsNamed) {
  nodes_[0].rdma = nodes_[2].rdma = "";
  nodes_[1].rdma = "mlx5_0 port 1 is down";
  EXPECT_THAT(Findings(),
              ElementsAre(AllOf(HasSubstr("rank 1 (b, pid 2) has no RDMA"), HasSubstr("is down"))));
}

}  // namespace
}  // namespace lockstep
