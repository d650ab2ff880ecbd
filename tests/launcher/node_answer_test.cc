#include "launcher/node_answer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "tests/fuzz/node_answer_fuzz_body.h"
#include "tests/fuzz/replay.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

TEST(NodeAnswer, WhatIsSentIsRead) {
  const RankFacts sent = {"ended", 4711, 1'764'374'400, "http://[::1]:80", "ready", "a\nb \u00e9"};
  const StatusOr<RankFacts> read = ParseRankFacts(JsonOf(sent).dump());
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->state, "ended");
  EXPECT_EQ(read->pid, 4711);
  EXPECT_EQ(read->started_at, 1'764'374'400);
  EXPECT_EQ(read->serves, "http://[::1]:80");
  EXPECT_EQ(read->health, "ready");
  EXPECT_EQ(read->log, "a\nb \u00e9");
}

TEST(NodeAnswer, WhatItSaysOfOthersIsNotTakenOver) {
  const auto facts = ParseRankFacts(
      R"({"rank":7,"node":"x","error":"y","state":"running","more":{"state":"ended","pid":1}})");
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_EQ(JsonOf(*facts).dump(), R"({"state":"running"})");
}

TEST(NodeAnswer, WhatIsNoAnswerIsRefused) {
  for (const std::string text :
       {"", "{", "[]", "7", "{}", R"({"state":7})", R"({"state":""})", "{\"state\":\"\xff\"}",
        R"({"state":"running","pid":-1})", R"({"state":"running","pid":2147483648})",
        R"({"state":"running","pid":1.5})", R"({"state":"running","pid":"1"})",
        R"({"state":"running","since":18446744073709551615})"})
    EXPECT_FALSE(ParseRankFacts(text).ok()) << text;
  EXPECT_FALSE(ParseRankFacts(std::string(200'000, '[')).ok());
}

TEST(NodeAnswer, NothingInItMovesATerminal) {
  const auto facts =
      ParseRankFacts(R"({"state":"run\u001bning","serves":"a\nb","health":"\u009b2J",)"
                     R"("log":"one\n\ttwo\r\u007f"})");
  ASSERT_TRUE(facts.ok()) << facts.status();
  EXPECT_EQ(facts->state, "run\\x1bning");
  EXPECT_EQ(facts->serves, "a\\x0ab");
  EXPECT_EQ(facts->health, "\\xc2\\x9b2J");
  EXPECT_EQ(facts->log, "one\n\ttwo\\x0d\\x7f");
}

TEST(Printable, KeepsCharactersAndWritesOutWhatIsNone) {
  for (const std::string text : {"", "plain ~", "\u00a0\u00e9", "\u2603", "\U0001f600", "\ufeff"})
    EXPECT_EQ(Printable(text, false), text);
  EXPECT_EQ(Printable("\x80", true), "\\x80");
  EXPECT_EQ(Printable("a\xc2", true), "a\\xc2");
  EXPECT_EQ(Printable("\xe0\x80\x80", true), "\\xe0\\x80\\x80");  // longer than need be
  EXPECT_EQ(Printable("\xed\xa0\x80", true), "\\xed\\xa0\\x80");
  EXPECT_EQ(Printable("\xf4\x90\x80\x80", true), "\\xf4\\x90\\x80\\x80");
  EXPECT_EQ(Printable(std::string("\0\n", 2), true), "\\x00\n");
}

TEST(NodeAnswerFuzzSeeds, NeitherTheyNorDamagedCopiesDoHarm) {
  EXPECT_GE(testing::ReplaySeeds("node_answer", 200, FuzzNodeAnswer), 3);
}

}  // namespace
}  // namespace lockstep
