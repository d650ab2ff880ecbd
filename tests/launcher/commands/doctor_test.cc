// `lockstep doctor` as a user starts it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "tests/launcher/program.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

TEST(Doctor, MeasuresEveryPairOverEveryTransportAndChooses) {
  Program doctor({"doctor", "--ranks", "3", "--json", "--log-level", "error"});
  ASSERT_EQ(doctor.Wait(), 0) << doctor.error();
  const Json json = Json::parse(doctor.out(), nullptr, false);
  ASSERT_TRUE(json.is_object()) << doctor.out();
  ASSERT_EQ(json["ranks"].size(), 3u);
  EXPECT_GT(json["ranks"][2]["memory_bytes"], 1e6);
  EXPECT_EQ(json["ranks"][2]["host"], json["ranks"][0]["host"]);
  std::set<std::string> pairs;
  for (const Json& link : json["links"]) {
    pairs.insert(link["transport"].get<std::string>() + link["ranks"].dump());
    EXPECT_GT(link["p50_us"], 0);
    EXPECT_LE(link["p50_us"], link["p99_us"]);
    EXPECT_GT(link["gb_per_s"], 0);
    EXPECT_EQ(link["large_bytes"], 20 << 20);
    // One machine, one clock: what is found is within what the reading allows.
    EXPECT_LE(std::abs(link["clock_ahead_ms"].get<double>()),
              link["clock_within_ms"].get<double>() + 1e-6);
    const bool tcp = link["transport"] == "tcp";
    for (const Json& end : link["ends"]) {
      EXPECT_EQ(end["address"], tcp ? "127.0.0.1" : "");
      EXPECT_EQ(end["interface"], tcp ? "lo" : "");
      if (tcp) EXPECT_GT(end["mtu"], 1000);
    }
  }
  EXPECT_EQ(pairs, (std::set<std::string>{"shm[0,1]", "shm[0,2]", "shm[1,2]", "tcp[0,1]",
                                          "tcp[0,2]", "tcp[1,2]"}));
  EXPECT_EQ(json["slowest"]["transport"], json["collective"]);
}

TEST(Doctor, SaysInWordsWhatToUse) {
  Program doctor({"doctor", "--ranks", "2", "--transports", "tcp", "--model", "/nowhere"});
  ASSERT_EQ(doctor.Wait(), 0) << doctor.error();
  EXPECT_THAT(doctor.out(), HasSubstr("Use --collective tcp: 10 KB take"));
  EXPECT_THAT(doctor.out(), HasSubstr("Slowest: rank 0 - rank 1"));
  // Ranks of one machine say once what is wrong with it.
  const std::string finding = ": /nowhere is not on this machine";
  const size_t first = doctor.out().find(finding);
  EXPECT_NE(first, std::string::npos);
  EXPECT_EQ(doctor.out().find(finding, first + 1), std::string::npos) << doctor.out();
}

TEST(Doctor, AloneItLooksAtTheMachineAndAtTheModel) {
  Program alone({"doctor", "--json", "--model", "/nowhere/model"});
  ASSERT_EQ(alone.Wait(), 0) << alone.error();
  const Json json = Json::parse(alone.out(), nullptr, false);
  ASSERT_TRUE(json.is_object()) << alone.out();
  EXPECT_TRUE(json["links"].empty());
  ASSERT_EQ(json["ranks"].size(), 1u);
  EXPECT_FALSE(json["ranks"][0]["machine"].empty());
  EXPECT_THAT(json["findings"].dump(), HasSubstr("/nowhere/model is not on this machine"));
  Program words({"doctor"});
  ASSERT_EQ(words.Wait(), 0) << words.error();
  EXPECT_THAT(words.out(), HasSubstr("No links: between two ranks at least (--ranks 2"));
}

TEST(Doctor, WrongQuestionsAreRefusedWithAnAnswer) {
  Program unknown({"doctor", "--ranks", "2", "--transports", "carrier pigeon"});
  EXPECT_EQ(unknown.Wait(), 2);
  EXPECT_THAT(unknown.error(), HasSubstr("'carrier pigeon' is not one of tcp, shm, rdma"));
}

}  // namespace
}  // namespace lockstep
