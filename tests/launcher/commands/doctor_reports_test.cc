// What a rank tells rank 0 of `lockstep doctor` is believed only where it can be read.
#include "launcher/commands/doctor_reports.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;
using ::testing::AllOf;
using ::testing::HasSubstr;

Json Sound(int side = 0) {
  const LinkFacts link = {
      .transport = "tcp",
      .ranks = {0, 1},
      .ends = {{"10.0.0.1", "eth0", "", 9000, 10'000}, {"10.0.0.2", "eth1", "", 1500, 2'500}},
      .p50_us = 30};
  Json links = Json::array();
  links.push_back({{"side", side}, {"link", JsonOf(link)}});
  return {{"name", "rank 1 (b)"},
          {"version", "1"},
          {"kernels", "cpu"},
          {"cpus", 4},
          {"memory_bytes", 1e9},
          {"rdma", ""},
          {"links", links},
          {"machine", {"a", "b"}},
          {"faults", {"b: hot"}},
          {"notes", Json::array()},
          {"versions", {{"firmware", "1.2"}}}};
}

std::string ErrorOf(const std::string& text) {
  DoctorReports reports;
  const Status added = AddReport(text, 1, 2, &reports);
  EXPECT_FALSE(added.ok()) << text;
  return MessageOf(added);
}

TEST(DoctorReports, BothSidesOfALinkBecomeOne) {
  DoctorReports reports;
  ASSERT_TRUE(AddReport(Sound(0).dump(), 0, 2, &reports).ok());
  ASSERT_TRUE(AddReport(Sound(1).dump(), 1, 2, &reports).ok());
  ASSERT_EQ(reports.nodes.size(), 2u);
  EXPECT_EQ(reports.facts[1].name, "rank 1 (b)");
  ASSERT_EQ(reports.links.size(), 1u);
  EXPECT_EQ(reports.links[0].p50_us, 30);
  EXPECT_EQ(reports.links[0].ends[0].interface, "eth0");
  EXPECT_EQ(reports.links[0].ends[1].mtu, 1500);
}

TEST(DoctorReports, EveryMemberThatIsMissingIsNamedWithTheRank) {
  EXPECT_THAT(ErrorOf("no JSON"), HasSubstr("rank 1: its report cannot be read"));
  EXPECT_THAT(ErrorOf("[]"), HasSubstr("rank 1: its report cannot be read"));
  const Json sound = Sound();
  for (const auto& [key, value] : sound.items()) {
    Json report = Sound();
    report.erase(key);
    EXPECT_THAT(ErrorOf(report.dump()), AllOf(HasSubstr("rank 1"), HasSubstr(key)));
    report[key] = key == "versions" ? Json::array({1}) : Json::object();  // of another kind
    EXPECT_THAT(ErrorOf(report.dump()), HasSubstr("rank 1"));
  }
  for (const auto& [key, value] : sound["links"][0]["link"].items()) {
    if (key == "nominal_gb_per_s") continue;  // for people
    Json report = Sound();
    report["links"][0]["link"].erase(key);
    EXPECT_THAT(ErrorOf(report.dump()), AllOf(HasSubstr("rank 1"), HasSubstr(key)));
  }
}

TEST(DoctorReports, RanksAndSidesThatDoNotExistAreRefused) {
  for (const std::vector<int>& ranks : {std::vector{0, 2}, {1, 0}, {-1, 0}, {0}}) {
    Json report = Sound();
    report["links"][0]["link"]["ranks"] = ranks;
    EXPECT_THAT(ErrorOf(report.dump()), HasSubstr("rank 1"));
  }
  EXPECT_THAT(ErrorOf(Sound(2).dump()), HasSubstr("side 2"));
  EXPECT_THAT(ErrorOf(Sound(-1).dump()), HasSubstr("side -1"));
}

}  // namespace
}  // namespace lockstep
