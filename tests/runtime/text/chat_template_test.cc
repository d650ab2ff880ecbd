#include "runtime/text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/runtime/text/text_test_support.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

constexpr ChatFamily kFamilies[] = {ChatFamily::kGlm46, ChatFamily::kGlm47};

// Read with the parser under test, which keeps large integers; nlohmann's values would not.
JsonValue ReadCases(const std::string& relative) {
  const auto value = ParseJson(ReadFileOrDie(SourcePath(relative)));
  EXPECT_TRUE(value.ok()) << value.status();
  return value.ok() ? *value->Find("cases") : JsonValue::MakeArray();
}

// A golden case as `lockstep render` takes it.
StatusOr<std::string> RenderCase(ChatFamily family, const JsonValue& item) {
  JsonValue line = *item.Find("options");
  for (const char* key : {"messages", "tools", "form"}) line.Set(key, *item.Find(key));
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatRequest request, ChatRequestFromJson(line));
  return RenderChat(family, request);
}

void CheckCases(const JsonValue& cases) {
  for (const JsonValue& item : cases.AsArray()) {
    for (ChatFamily family : kFamilies) {
      SCOPED_TRACE(item.Find("name")->AsString() + " " + ChatFamilyName(family));
      const auto text = RenderCase(family, item);
      const JsonValue& wanted = *item.Find("rendered")->Find(ChatFamilyName(family));
      ASSERT_EQ(text.ok(), wanted.is_string()) << text.status();
      if (text.ok()) {
        EXPECT_EQ(*text, wanted.AsString());
      } else {
        EXPECT_EQ(KindOf(text.status()), ErrorKind::kRequest);
      }
    }
  }
}

TEST(ChatTemplateTest, EveryGoldenCaseOfBothFamiliesIsEqual) {
  const JsonValue cases = ReadCases("tests/goldens/goldens/chat_template.json");
  ASSERT_GE(cases.AsArray().size(), 50u);
  CheckCases(cases);
}

TEST(ChatTemplateTest, TheRenderedPromptHasTheGoldenIds) {
  const auto tokenizer = GoldenTokenizer("large");
  ASSERT_NE(tokenizer, nullptr);
  const JsonValue cases = ReadCases("tests/goldens/goldens/chat_template.json");
  for (const JsonValue& item : cases.AsArray()) {
    const auto text = RenderCase(ChatFamily::kGlm47, item);
    ASSERT_TRUE(text.ok()) << text.status();
    JsonValue::Array ids;
    for (int32_t id : tokenizer->Encode(*text)) ids.push_back(JsonValue::Int(id));
    EXPECT_EQ(JsonValue::MakeArray(ids), *item.Find("ids_large_tokenizer"))
        << item.Find("name")->AsString();
  }
}

// Conversations drawn at random (odd whitespace, nested content, calls without names...), rendered
// by jinja2 3.1.6 in the environment of transformers 5.23; null where the template itself failed.
TEST(ChatTemplateTest, RandomConversationsAreEqualToJinja) {
  const JsonValue cases = ReadCases("tests/runtime/text/data/chat_random.json");
  ASSERT_GE(cases.AsArray().size(), 150u);
  CheckCases(cases);
}

StatusOr<std::string> RenderLine(ChatFamily family, const std::string& line) {
  LOCKSTEP_ASSIGN_OR_RETURN(const JsonValue value, ParseJson(line));
  LOCKSTEP_ASSIGN_OR_RETURN(const ChatRequest request, ChatRequestFromJson(value));
  return RenderChat(family, request);
}

TEST(ChatTemplateTest, BadRequestsSayWhatIsWrong) {
  const struct {
    const char* line;
    const char* said;
  } cases[] = {
      {R"([])", "must be an object"},
      {R"({})", "messages is missing"},
      {R"({"messages": []})", "at least one message"},
      {R"({"messages": "hi"})", "messages must be an array"},
      {R"({"messages": [1]})", "messages[0] must be an object"},
      {R"({"messages": [{"role":"user"}], "tools": {}})", "tools must be an array"},
      {R"({"messages": [{"role":"user"}], "tools": ["f"]})", "tools[0]"},
      {R"({"messages": [{"role":"user"}], "form": "xml"})", "form"},
      {R"({"messages": [{"role":"user"}], "enable_thinking": "no"})", "enable_thinking"},
      {R"({"messages": [{"role":"user"}], "temperature": 1})", "temperature"},
      {R"({"messages": [{"role":"tool","content":5}]})", "messages[0].content"},
      {R"({"messages": [{"role":"assistant","tool_calls":7}]})", "messages[0].tool_calls"},
      {R"({"messages": [{"role":"assistant","tool_calls":[{"function":{}}]}]})",
       "tool_calls[0] has no name"},
      {R"({"messages": [{"role":"assistant","tool_calls":["f"]}]})", "tool_calls[0] has no name"},
      {R"({"messages": [{"role":"assistant","tool_calls":[{"name":"f","arguments":"{"}]}]})",
       "not JSON"},
      {R"({"messages": [{"role":"assistant","tool_calls":[{"name":"f","arguments":"[1]"}]}]})",
       "arguments"},
  };
  for (const auto& item : cases) {
    for (ChatFamily family : kFamilies) {
      const auto text = RenderLine(family, item.line);
      ASSERT_FALSE(text.ok()) << item.line;
      EXPECT_EQ(KindOf(text.status()), ErrorKind::kRequest) << item.line;
      EXPECT_THAT(MessageOf(text.status()), HasSubstr(item.said)) << item.line;
    }
  }
}

TEST(ChatTemplateTest, NullOptionsAndContentCountAsAbsentAndEmpty) {
  const auto text =
      RenderLine(ChatFamily::kGlm47,
                 R"({"messages":[{"role":"user","content":null},{"role":"tool","content":null}],
                                   "tools":null,"form":null,
                                   "add_generation_prompt":null,"enable_thinking":null})");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(
      *text,
      "[gMASK]<sop><|user|><|observation|><tool_response></tool_response><|assistant|><think>");
}

TEST(ChatTemplateTest, OpenAiToolResultsWithOtherPartsAreNotJoined) {
  const auto text =
      RenderLine(ChatFamily::kGlm47,
                 R"({"messages":[{"role":"tool","content":[{"output":"a"},"b"]}],"form":"openai",
                                   "add_generation_prompt":false})");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text,
            "[gMASK]<sop><|observation|><tool_response>a</tool_response><tool_response>b</"
            "tool_response>");
}

TEST(ChatTemplateTest, RequestsBuiltInCodeRenderLikeParsedOnes) {
  ChatRequest request;
  request.AddMessage("user", "a");
  request.AddAssistantMessage("b", "r");
  request.clear_thinking = false;
  const auto text = RenderChat(ChatFamily::kGlm47, request);
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(*text, "[gMASK]<sop><|user|>a<|assistant|><think>r</think>b<|assistant|><think>");
}

TEST(RecognizeChatTemplateTest, KnowsBothTextsAndTellsOthersByTheirMarkers) {
  const std::string glm47 =
      ReadFileOrDie(SourcePath("tests/goldens/models/tiny-a/chat_template.jinja"));
  const std::string glm46 =
      ReadFileOrDie(SourcePath("tests/goldens/models/tiny-b/chat_template.jinja"));
  for (const auto& [text, family] :
       {std::pair(glm47, ChatFamily::kGlm47), std::pair(glm46, ChatFamily::kGlm46)}) {
    const ChatTemplateMatch match = RecognizeChatTemplate(text);
    EXPECT_EQ(match.family, family);
    EXPECT_TRUE(match.exact);
    EXPECT_TRUE(
        RecognizeChatTemplate(text.ends_with('\n') ? text.substr(0, text.size() - 1) : text + "\n")
            .exact);
    const ChatTemplateMatch changed = RecognizeChatTemplate(text + " ");
    EXPECT_EQ(changed.family, family);
    EXPECT_FALSE(changed.exact);
    EXPECT_NE(changed.digest, match.digest);
  }
  EXPECT_FALSE(
      RecognizeChatTemplate("{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}")
          .family);
  EXPECT_FALSE(RecognizeChatTemplate("").family);
}

}  // namespace
}  // namespace lockstep
