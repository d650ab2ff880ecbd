#include "runtime/base/log_event.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::MatchesRegex;

std::string Logged(log::Form form, int rank, const std::function<void()>& work) {
  ::testing::internal::CaptureStderr();
  log::SetForm(form);
  log::Configure(log::Level::kInfo, rank);
  work();
  log::SetForm(log::Form::kText);
  log::Configure(log::Level::kInfo, -1);
  return ::testing::internal::GetCapturedStderr();
}

const std::vector<log::Fact> kFacts = {
    {"id", "a-1"}, {"say", "two words"}, {"port", int64_t{8000}}, {"ms", 1.5}, {"none", ""}};

TEST(LogEventTest, PeopleReadFactsInALine) {
  EXPECT_THAT(
      Logged(log::Form::kText, 2, [] { log::Event(log::Level::kInfo, "request", kFacts); }),
      EndsWith(" I rank 2: request id=a-1 say=\"two words\" port=8000 ms=1.500 none=\"\"\n"));
}

TEST(LogEventTest, ProgramsReadAnObjectALine) {
  const std::string event =
      Logged(log::Form::kJson, 2, [] { log::Event(log::Level::kInfo, "request", kFacts); });
  EXPECT_THAT(event, MatchesRegex("\\{\"time\":\"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\\.[0-9]{3}Z\""
                                  ",\"level\":\"info\",\"rank\":2,.*\\}\n"));
  EXPECT_THAT(event, HasSubstr(R"("event":"request","id":"a-1","say":"two words","port":8000,)"
                               R"("ms":1.500,"none":""})"));
  EXPECT_THAT(Logged(log::Form::kJson, -1, [] { log::Warning("%s", "a \"b\"\n"); }),
              AllOf(HasSubstr(R"("level":"warning","message":"a \"b\"\u000a"})"),
                    testing::Not(HasSubstr("rank"))));
  EXPECT_EQ(Logged(log::Form::kJson, -1, [] { log::Event(log::Level::kDebug, "no", {}); }), "");
}

TEST(LogEventTest, WhatIsQuotedIsValidWhateverItHolds) {
  EXPECT_EQ(log::Quoted("naïve 🙂 \t"), "\"naïve 🙂 \\u0009\"");
  EXPECT_EQ(log::Quoted("\xff\xc0\xaf!\xed\xa0\x80\xe2\x82"),
            R"("\ufffd\ufffd\ufffd!\ufffd\ufffd\ufffd\ufffd\ufffd")");
}

}  // namespace
}  // namespace lockstep
