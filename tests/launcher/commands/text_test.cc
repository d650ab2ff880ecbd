#include "launcher/commands/text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "tests/runtime/text/text_test_support.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

std::vector<std::string> Lines(const std::string& text) {
  std::vector<std::string> lines;
  std::stringstream in(text);
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

TEST(TextCommandsTest, AnswersEveryLineInOrderWithOrWithoutALastNewline) {
  const auto tokenizer = LoadFrom(SmallTokenizerJson());
  ASSERT_TRUE(tokenizer.ok());
  for (const char* end : {"", "\n", "\r\n"}) {
    std::istringstream in(
        std::string("{\"text\":\"ab\"}\n{\"text\":\"\"}\n{\"text\":\"<think>\"}") + end);
    std::ostringstream out;
    EXPECT_TRUE(TokenizeLines(**tokenizer, in, out).ok());
    EXPECT_EQ(out.str(), "{\"ids\": [97, 98]}\n{\"ids\": []}\n{\"ids\": [257]}\n");
  }
  std::istringstream nothing("");
  std::ostringstream out;
  EXPECT_TRUE(TokenizeLines(**tokenizer, nothing, out).ok());
  EXPECT_EQ(out.str(), "");
}

TEST(TextCommandsTest, ABadLineGivesAnErrorLineAndExitCodeTwoAtTheEnd) {
  const auto tokenizer = LoadFrom(SmallTokenizerJson());
  ASSERT_TRUE(tokenizer.ok());
  std::istringstream in(
      "{\"text\":\"a\"}\n\n{\n[]\n{\"text\":5}\n{}\n{\"text\":\"a\",\"x\":1}\n{\"text\":\"\xFF\"}"
      "\n{\"text\":\"b\"}\n");
  std::ostringstream out;
  const Status status = TokenizeLines(**tokenizer, in, out);
  EXPECT_EQ(ExitCode(status), 2);
  EXPECT_THAT(MessageOf(status), HasSubstr("7 of 9"));
  const std::vector<std::string> lines = Lines(out.str());
  ASSERT_EQ(lines.size(), 9u);
  EXPECT_EQ(lines[0], "{\"ids\": [97]}");
  EXPECT_EQ(lines[8], "{\"ids\": [98]}");
  for (size_t i = 1; i < 8; ++i) {
    const TestJson error = TestJson::parse(lines[i]);
    EXPECT_EQ(error.size(), 1u) << lines[i];
    EXPECT_TRUE(error["error"].is_string()) << lines[i];
  }
}

TEST(TextCommandsTest, DetokenizeGivesTextOrPieces) {
  const auto tokenizer = LoadFrom(SmallTokenizerJson());
  ASSERT_TRUE(tokenizer.ok());
  std::istringstream in(
      "{\"ids\":[230,151,165,256,97]}\n{\"ids\":[230,151,165,256,97],\"skip_special\":true}\n"
      "{\"ids\":[230,151,165,256],\"stream\":true,\"skip_special\":true}\n{\"ids\":[97,230],"
      "\"stream\":true}\n"
      "{\"ids\":[226,128,168,194,133]}\n");
  std::ostringstream out;
  EXPECT_TRUE(DetokenizeLines(**tokenizer, in, out).ok());
  EXPECT_EQ(
      out.str(),
      "{\"text\": \"日<|user|>a\"}\n{\"text\": \"日a\"}\n{\"pieces\": [null, null, \"日\", null]}\n"
      "{\"pieces\": [\"a\", null], \"rest\": \"\uFFFD\"}\n{\"text\": \"\\u2028\\u0085\"}\n");
}

TEST(TextCommandsTest, DetokenizeRefusesIdsWithoutAToken) {
  const auto tokenizer = LoadFrom(SmallTokenizerJson());
  ASSERT_TRUE(tokenizer.ok());
  for (const char* line :
       {"{\"ids\":[258]}", "{\"ids\":[-1]}", "{\"ids\":[1.5]}", "{\"ids\":[4294967297]}",
        "{\"ids\":\"x\"}", "{}", "{\"ids\":[],\"stream\":1}", "{\"ids\":[],\"text\":\"\"}"}) {
    std::istringstream in(line);
    std::ostringstream out;
    EXPECT_EQ(ExitCode(DetokenizeLines(**tokenizer, in, out)), 2) << line;
    EXPECT_TRUE(TestJson::parse(out.str()).contains("error")) << line;
  }
}

TEST(TextCommandsTest, RenderGivesThePrompt) {
  std::istringstream in(
      "{\"messages\":[{\"role\":\"user\",\"content\":\"é\"}],\"enable_thinking\":false}\n{"
      "\"messages\":[]}\n");
  std::ostringstream out;
  EXPECT_EQ(ExitCode(RenderLines(ChatFamily::kGlm46, in, out)), 2);
  const std::vector<std::string> lines = Lines(out.str());
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0],
            "{\"text\": \"[gMASK]<sop><|user|>\\né/nothink<|assistant|>\\n<think></think>\"}");
  EXPECT_THAT(lines[1], HasSubstr("{\"error\": "));
}

}  // namespace
}  // namespace lockstep
