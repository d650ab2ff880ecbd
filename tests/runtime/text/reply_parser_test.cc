#include "runtime/text/reply_parser.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/runtime/text/text_test_support.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

// Events with neighbours of one kind joined, as one text.
std::string Joined(const std::vector<ReplyEvent>& events) {
  std::string out;
  const ReplyEvent* last = nullptr;
  for (const ReplyEvent& event : events) {
    if (event.kind == ReplyEvent::Kind::kToolCall) {
      out += "\nCALL " + event.name + " " + event.arguments.Dump();
    } else {
      if (last == nullptr || last->kind != event.kind) {
        out += event.kind == ReplyEvent::Kind::kContent ? "\nCONTENT " : "\nREASONING ";
      }
      out += event.text;
    }
    last = &event;
  }
  return out;
}

std::string ParsePieces(const std::vector<std::string_view>& pieces, ReplyStart start,
                        const JsonValue& tools) {
  ReplyParser parser(start, tools);
  std::vector<ReplyEvent> all;
  const auto add = [&](std::vector<ReplyEvent> events) {
    for (ReplyEvent& event : events) all.push_back(std::move(event));
  };
  for (std::string_view piece : pieces) add(parser.Push(piece));
  add(parser.Finish());
  return Joined(all);
}

class GoldenReplyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    golden_ = ReadJson("tests/goldens/goldens/tool_parse.json");
    tools_ = ToValue(golden_["tools"]);
    ASSERT_GE(golden_["cases"].size(), 26u);
  }
  static ReplyStart StartOf(const TestJson& item) {
    return item["thinking"].get<bool>() ? ReplyStart::kThinking : ReplyStart::kContent;
  }
  TestJson golden_;
  JsonValue tools_;
};

TEST_F(GoldenReplyTest, EveryCaseGivesTheExpectedMessage) {
  for (const TestJson& item : golden_["cases"]) {
    SCOPED_TRACE(item["name"].get<std::string>());
    const ParsedReply reply = ParseReply(item["text"].get<std::string>(), StartOf(item), tools_);
    const TestJson& expected = item["expected"];
    EXPECT_EQ(reply.thought, expected["reasoning"].is_string());
    EXPECT_EQ(reply.reasoning,
              expected["reasoning"].is_string() ? expected["reasoning"].get<std::string>() : "");
    EXPECT_EQ(reply.content, expected["content"].get<std::string>());
    ASSERT_EQ(reply.tool_calls.size(), expected["tool_calls"].size());
    for (size_t i = 0; i < reply.tool_calls.size(); ++i) {
      EXPECT_EQ(reply.tool_calls[i].name, expected["tool_calls"][i]["name"].get<std::string>());
      EXPECT_EQ(reply.tool_calls[i].arguments, ToValue(expected["tool_calls"][i]["arguments"]));
    }
  }
}

TEST_F(GoldenReplyTest, AnyCutOfTheTextGivesTheSameEvents) {
  std::mt19937 random(lockstep::testing::TestSeed());
  for (const TestJson& item : golden_["cases"]) {
    SCOPED_TRACE(item["name"].get<std::string>());
    const std::string text = item["text"];
    const std::string_view view = text;
    const std::string whole = ParsePieces({view}, StartOf(item), tools_);
    std::vector<std::string_view> bytes;
    for (size_t i = 0; i < view.size(); ++i) {
      bytes.push_back(view.substr(i, 1));
      EXPECT_EQ(ParsePieces({view.substr(0, i), view.substr(i)}, StartOf(item), tools_), whole)
          << i;
    }
    EXPECT_EQ(ParsePieces(bytes, StartOf(item), tools_), whole);
    for (int round = 0; round < 20; ++round) {
      std::vector<std::string_view> pieces;
      for (size_t at = 0; at < view.size();) {
        const size_t length = random() % 9 + 1;
        pieces.push_back(view.substr(at, length));
        at += pieces.back().size();
      }
      EXPECT_EQ(ParsePieces(pieces, StartOf(item), tools_), whole);
    }
  }
}

TEST(ReplyParserTest, RandomTagSoupIsSplitTheSameHoweverItIsCut) {
  std::mt19937 random(lockstep::testing::TestSeed());
  const char* words[] = {
      "<think>",     "</think>",     "<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>",
      "<arg_value>", "</arg_value>", "<",           "</",           "<tool",     "f",
      " ",           "\n",           "1",           "日",           "</thin",    "x y"};
  for (int round = 0; round < 500; ++round) {
    std::string text;
    for (size_t n = random() % 25; n > 0; --n) text += words[random() % std::size(words)];
    const auto start = static_cast<ReplyStart>(random() % 3);
    std::vector<std::string_view> pieces;
    for (size_t at = 0; at < text.size();) {
      pieces.push_back(std::string_view(text).substr(at, random() % 5 + 1));
      at += pieces.back().size();
    }
    EXPECT_EQ(ParsePieces(pieces, start, {}), ParsePieces({text}, start, {})) << text;
  }
}

TEST(ReplyParserTest, ReasoningStreamsAtOnceAndOnlyPossibleTagsWait) {
  ReplyParser parser(ReplyStart::kThinking, {});
  EXPECT_EQ(Joined(parser.Push("hm <")), "\nREASONING hm ");
  EXPECT_EQ(Joined(parser.Push("b")), "\nREASONING <b");
  EXPECT_EQ(Joined(parser.Push("</thi")), "");
  EXPECT_EQ(Joined(parser.Push("nk>A")), "\nCONTENT A");
  EXPECT_EQ(Joined(parser.Push("B<tool")), "\nCONTENT B");
  EXPECT_EQ(Joined(parser.Finish()), "\nCONTENT <tool");
}

TEST(ReplyParserTest, AnUndecidedReplyThinksOnlyIfItSaysSo) {
  EXPECT_EQ(ParsePieces({"\n<think>hm</think>\nyes"}, ReplyStart::kUndecided, {}),
            "\nREASONING hm\nCONTENT \nyes");
  EXPECT_EQ(ParsePieces({"\nyes <think>"}, ReplyStart::kUndecided, {}), "\nCONTENT \nyes <think>");
  EXPECT_EQ(ParsePieces({"\n<th"}, ReplyStart::kUndecided, {}), "\nCONTENT \n<th");
  EXPECT_EQ(ParsePieces({"  "}, ReplyStart::kUndecided, {}), "\nCONTENT   ");
  EXPECT_TRUE(ParseReply("<think></think>x", ReplyStart::kUndecided, {}).thought);
  EXPECT_FALSE(ParseReply("x", ReplyStart::kUndecided, {}).thought);
}

TEST(ReplyParserTest, ACallThatIsCutOffIsShownAsText) {
  const std::string cut = "ok<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value><arg_key>b";
  EXPECT_EQ(ParsePieces({cut}, ReplyStart::kContent, {}), "\nCONTENT " + cut);
}

TEST(ReplyParserTest, ValuesMayHoldClosingTagsOfCalls) {
  const ParsedReply reply = ParseReply(
      "<tool_call>f<arg_key>c</arg_key><arg_value>'</tool_call>'</arg_value></tool_call>",
      ReplyStart::kContent, {});
  ASSERT_EQ(reply.tool_calls.size(), 1u);
  EXPECT_EQ(reply.tool_calls[0].arguments.Dump(), R"({"c": "</tool_call>"})");
}

// Rescanning or shifting what was read would make these quadratic.
TEST(ReplyParserTest, LongRepliesTakeLinearTime) {
  std::string thoughts, calls = "<tool_call>f<arg_key>k</arg_key><arg_value>";
  for (int i = 0; i < 200000; ++i) thoughts += "<think>";
  EXPECT_EQ(ParseReply(thoughts, ReplyStart::kThinking, {}).reasoning, "");
  ReplyParser parser(ReplyStart::kContent, {});
  EXPECT_TRUE(parser.Push(calls).empty());
  for (int i = 0; i < 300000; ++i) EXPECT_TRUE(parser.Push("ab<").empty());
  const std::vector<ReplyEvent> events = parser.Push("</arg_value></tool_call>");
  ASSERT_EQ(events.size(), 1u);
  EXPECT_EQ(events[0].arguments.Find("k")->AsString().size(), 900000u);
}

TEST(ReplyParserTest, TextBetweenCallsIsKeptAndLayoutIsNot) {
  const ParsedReply reply = ParseReply(
      "A\n<tool_call>f</tool_call>\n \n<tool_call>g</tool_call>\nB", ReplyStart::kContent, {});
  EXPECT_EQ(reply.tool_calls.size(), 2u);
  EXPECT_EQ(reply.content, "A\n\nB");
}

TEST(ReplyParserTest, ThePromptSaysHowTheReplyStarts) {
  EXPECT_EQ(ReplyStartOf("<|assistant|><think>"), ReplyStart::kThinking);
  EXPECT_EQ(ReplyStartOf("<|assistant|></think>"), ReplyStart::kContent);
  EXPECT_EQ(ReplyStartOf("<|assistant|>\n<think></think>"), ReplyStart::kContent);
  EXPECT_EQ(ReplyStartOf("<|assistant|>"), ReplyStart::kUndecided);
}

}  // namespace
}  // namespace lockstep
