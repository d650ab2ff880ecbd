#include "launcher/load/sse.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/fuzz/replay.h"
#include "tests/fuzz/sse_fuzz_body.h"

namespace lockstep {
namespace {

using ::testing::ElementsAre;

std::vector<std::string> Whole(const std::string& stream) {
  return EventsInPieces(stream, stream.size(), 1);
}

TEST(Sse, EventsAreTheLinesOfDataBetweenBlankOnes) {
  EXPECT_THAT(Whole("data: one\n\ndata:two\n\n"), ElementsAre("one", "two"));
  EXPECT_THAT(Whole("data: a\ndata:  b\ndata\ndata:\n\n"), ElementsAre("a\n b\n\n"));
  EXPECT_THAT(Whole("data:\n\n"), ElementsAre(""));
  EXPECT_THAT(Whole(": comment\n\nevent: e\nid: 1\nretry: 2\ndatum: x\ndata: y\n\n"),
              ElementsAre("y"));
  EXPECT_THAT(Whole("\xef\xbb\xbf"
                    "data: marked\n\n"),
              ElementsAre("marked"));
  EXPECT_THAT(Whole("\n\n\n"), ElementsAre());
}

TEST(Sse, LinesEndAsTheyLike) {
  EXPECT_THAT(Whole("data: a\r\n\r\ndata: b\r\rdata: c\n\r\n"), ElementsAre("a", "b", "c"));
}

TEST(Sse, WhatHasNoEndIsNoEvent) {
  EXPECT_THAT(Whole("data: one\n\ndata: two\n"), ElementsAre("one"));
  EXPECT_THAT(Whole("data: one\n\ndata: tw"), ElementsAre("one"));
}

TEST(Sse, EverySplitInTwoGivesTheSame) {
  const std::string stream =
      "\xef\xbb\xbf: hello\r\n\r\ndata: {\"a\": 1}\r\ndata:\r\n\r\n\rdata: [DONE]\n\nevent: x\r"
      "data: \xc3\xa4 \r\rdata: rest";
  const std::vector<std::string> whole = EventsOf(stream);
  ASSERT_THAT(whole, ElementsAre("{\"a\": 1}\n", "[DONE]", "\xc3\xa4 "));
  for (size_t first = 0; first <= stream.size(); ++first) {
    EXPECT_EQ(EventsInPieces(stream, first, stream.size()), whole) << first;
    EXPECT_EQ(EventsInPieces(stream, first, 1), whole) << first;
  }
}

TEST(Sse, AnEventThatDoesNotEndEndsTheReading) {
  int events = 0;
  SseReader reader([&](std::string_view) { ++events; });
  const std::string part(SseReader::kMostEventBytes / 4, 'x');
  EXPECT_TRUE(reader.Push("data: first\n\ndata: "));
  bool good = true;
  int parts = 0;
  for (; good && parts < 100; ++parts) good = reader.Push(part);
  EXPECT_EQ(parts, 4);
  EXPECT_FALSE(reader.Push("\n\ndata: more\n\n"));
  EXPECT_EQ(events, 1);
  // In many lines, too, even empty ones.
  SseReader lines([&](std::string_view) { ++events; });
  good = true;
  for (size_t i = 0; good && i < SseReader::kMostEventBytes + 10; ++i) good = lines.Push("data\n");
  EXPECT_FALSE(good);
  EXPECT_EQ(events, 1);
}

TEST(Sse, SeedsAndDamagedSeedsAreReadTheSameInAnyPieces) {
  EXPECT_GE(testing::ReplaySeeds("sse", 2'000, FuzzSse), 5);
}

}  // namespace
}  // namespace lockstep
