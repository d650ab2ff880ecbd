#include "runtime/base/log_event.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
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

TEST(LogEventTest, AReaderThatHasStoppedCostsLinesAndNoTime) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const int own = dup(STDERR_FILENO);
  dup2(ends[1], STDERR_FILENO);
  const auto begin = std::chrono::steady_clock::now();
  const std::string id(100, 'x');
  const std::vector<log::Fact> facts = {{"id", id}};
  constexpr int kEvents = 20'000;  // of more than 100 bytes: the pipe holds half of them at most
  for (int i = 0; i < kEvents; ++i) log::Event(log::Level::kInfo, "request", facts);
  const auto passed = std::chrono::steady_clock::now() - begin;
  fcntl(ends[0], F_SETFL, O_NONBLOCK);
  std::string read_so_far(4 << 20, '\0');
  const auto drain = [&] {
    size_t size = 0;
    ssize_t got = 0;
    while ((got = read(ends[0], read_so_far.data() + size, read_so_far.size() - size)) > 0)
      size += static_cast<size_t>(got);
    const std::string_view text(read_so_far.data(), size);
    return std::count(text.begin(), text.end(), '\n');
  };
  const auto before = drain();
  log::Event(log::Level::kInfo, "request", facts);
  const auto after = drain();
  dup2(own, STDERR_FILENO);
  for (const int fd : {own, ends[0], ends[1]}) close(fd);
  EXPECT_LT(passed, std::chrono::seconds(5));
  EXPECT_GT(before, 100);
  EXPECT_LT(before, kEvents);
  EXPECT_EQ(after, 2);
  EXPECT_THAT(read_so_far,
              HasSubstr(absl::StrFormat("%d lines of the log are missing", kEvents - before)));
}

TEST(LogEventTest, WhatIsQuotedIsValidWhateverItHolds) {
  EXPECT_EQ(log::Quoted("naïve 🙂 \t"), "\"naïve 🙂 \\u0009\"");
  EXPECT_EQ(log::Quoted("\xff\xc0\xaf!\xed\xa0\x80\xe2\x82"),
            R"("\ufffd\ufffd\ufffd!\ufffd\ufffd\ufffd\ufffd\ufffd")");
}

}  // namespace
}  // namespace lockstep
