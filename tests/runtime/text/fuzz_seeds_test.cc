// Replays seeds, whole and damaged, through what the fuzz targets run.
#include <gtest/gtest.h>

#include <random>

#include "tests/runtime/text/fuzz_bodies.h"
#include "tests/runtime/text/text_test_support.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

void ReplayDamaged(const std::string& seed_text, int rounds, void (*body)(std::string_view)) {
  std::mt19937 random(lockstep::testing::TestSeed());
  body(seed_text);
  for (int i = 0; i < rounds; ++i) {
    std::string damaged = seed_text;
    for (size_t n = random() % 4 + 1; n > 0 && !damaged.empty(); --n) {
      const size_t at = random() % damaged.size();
      switch (random() % 3) {
        case 0:
          damaged[at] = static_cast<char>(random());
          break;
        case 1:
          damaged.erase(at, random() % 8);
          break;
        default:
          damaged.insert(at, damaged.substr(random() % damaged.size(), random() % 8));
          break;
      }
    }
    body(damaged);
  }
}

TEST(TextFuzzSeedsTest, TokenizerJson) {
  ReplayDamaged(SmallTokenizerJson({{"a", "b"}}).dump(), 200, FuzzTokenizerJson);
}

TEST(TextFuzzSeedsTest, Detokenize) {
  ReplayDamaged("The <|user|>the thé 日本\xF0\x9F\x98\x80 <think>", 500, FuzzDetokenize);
}

TEST(TextFuzzSeedsTest, ChatTemplate) {
  const TestJson golden = ReadJson("tests/goldens/goldens/chat_template.json");
  ASSERT_FALSE(golden["cases"].empty());
  for (const TestJson& item : golden["cases"]) {
    const TestJson line = {
        {"messages", item["messages"]}, {"tools", item["tools"]}, {"form", item["form"]}};
    ReplayDamaged(line.dump(), 40, FuzzChatTemplate);
  }
}

TEST(TextFuzzSeedsTest, ReplyParser) {
  const TestJson golden = ReadJson("tests/goldens/goldens/tool_parse.json");
  ASSERT_FALSE(golden["cases"].empty());
  for (const TestJson& item : golden["cases"]) {
    for (char choice : {'\x00', '\x50', '\xA1'}) {
      ReplayDamaged(choice + item["text"].get<std::string>(), 40, FuzzReplyParser);
    }
  }
}

}  // namespace
}  // namespace lockstep
