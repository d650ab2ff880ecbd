// The sets of tokens that constraints allow, against languages that are written out.
#include "runtime/grammar/constraints.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "runtime/grammar/reply_grammar.h"
#include "runtime/text/model_text.h"
#include "tests/support/golden.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

JsonValue Parse(const std::string& text) { return ParseJson(text).value(); }

bool Has(std::span<const uint32_t> set, int32_t id) {
  return static_cast<size_t>(id) / 32 < set.size() && (set[id / 32] >> (id % 32) & 1) != 0;
}

class ConstraintsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    text_ = std::make_unique<ModelText>(
        LoadModelText(testing::SourcePath("models/tiny"), "auto").value());
    constraints_ = MakeTokenConstraints(*text_->tokenizer, text_->stop_token_ids);
    if (constraints_ == nullptr) GTEST_SKIP() << "built without xgrammar";
  }

  const Tokenizer& tokenizer() const { return *text_->tokenizer; }
  bool Ends(int32_t id) const {
    return std::find(text_->stop_token_ids.begin(), text_->stop_token_ids.end(), id) !=
           text_->stop_token_ids.end();
  }
  int32_t Id(const std::string& token) const { return tokenizer().IdOf(token).value(); }

  // An answer by random allowed tokens, those that close something first more and more often.
  // `look` sees each set and the text before it.
  template <typename Look>
  std::string Walk(TokenConstraint& constraint, std::mt19937_64& random, const Look& look) {
    std::string said;
    for (int step = 0; step < 400; ++step) {
      const std::span<const uint32_t> allowed = constraint.Allowed();
      look(allowed, said);
      std::vector<int32_t> all, closing;
      for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
        if (!Has(allowed, id)) continue;
        all.push_back(id);
        const std::string_view bytes = tokenizer().TokenBytes(id);
        if (Ends(id) || bytes.find_first_of("\"}]<0,") != std::string_view::npos)
          closing.push_back(id);
      }
      EXPECT_FALSE(all.empty());
      const bool close = !closing.empty() && random() % 100 < (step < 60 ? 40 : 95);
      const std::vector<int32_t>& pool = close ? closing : all;
      const int32_t id = pool[random() % pool.size()];
      if (Ends(id)) return said;
      said += tokenizer().TokenBytes(id);
      constraint.Append(id);
    }
    return said + "<no end>";
  }

  // Whether exactly the beginnings of `words` are allowed, whatever is said.
  void ExpectLanguage(const std::string& grammar, const std::set<std::string>& words) {
    ASSERT_TRUE(constraints_->Check(grammar).ok()) << constraints_->Check(grammar);
    std::mt19937_64 random(testing::TestSeed());
    std::set<std::string> said;
    for (int turn = 0; turn < 40; ++turn) {
      const std::unique_ptr<TokenConstraint> constraint = constraints_->Start(grammar);
      said.insert(Walk(
          *constraint, random, [&](std::span<const uint32_t> allowed, const std::string& before) {
            for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
              const std::string after = before + std::string(tokenizer().TokenBytes(id));
              const bool begins =
                  std::any_of(words.begin(), words.end(),
                              [&](const std::string& word) { return word.starts_with(after); });
              const bool good = Ends(id) ? words.contains(before)
                                         : begins && !tokenizer().IsSpecial(id) && after != before;
              ASSERT_EQ(Has(allowed, id), good) << "after '" << before << "' token " << id << " '"
                                                << tokenizer().TokenText(id) << "'";
            }
          }));
    }
    for (const std::string& word : said) EXPECT_TRUE(words.contains(word)) << word;
    EXPECT_GT(said.size(), words.size() > 1 ? 1u : 0u);
  }

  std::string JsonGrammar(const std::string& schema) {
    ReplyRules rules;
    rules.schema = Parse(schema);
    return MakeTextGrammar(rules).value();
  }

  std::unique_ptr<ModelText> text_;
  std::unique_ptr<TokenConstraints> constraints_;
};

TEST_F(ConstraintsTest, AllowsExactlyTheBeginningsOfWhatASchemaLists) {
  ExpectLanguage(JsonGrammar(R"({"enum": ["a", "about", "abcdefgh ", 12, 120, null, true]})"),
                 {"\"a\"", "\"about\"", "\"abcdefgh \"", "12", "120", "null", "true"});
  ExpectLanguage(JsonGrammar(R"({"type": "integer", "minimum": 98, "maximum": 103})"),
                 {"98", "99", "100", "101", "102", "103"});
  ExpectLanguage(JsonGrammar(R"({"type": "string", "pattern": "^(a|b)c?$"})"),
                 {"\"a\"", "\"ac\"", "\"b\"", "\"bc\""});
  ExpectLanguage(JsonGrammar(R"({"const": "Zürich\n\"<tool"})"), {"\"Zürich\\n\\\"<tool\""});
}

TEST_F(ConstraintsTest, AllowsExactlyTheCallsThatToolsHave) {
  ReplyRules rules;
  rules.calls = ReplyRules::Calls::kRequired;
  rules.parallel_calls = false;
  rules.tools = Parse(R"([
      {"type": "function", "function": {"name": "get", "parameters": {"type": "object",
        "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]},
                       "n": {"enum": [1, "x"]}}, "required": ["city"]}}},
      {"type": "function", "function": {"name": "get_time"}}])");
  std::set<std::string> words = {"<tool_call>get_time</tool_call>"};
  for (const char* city : {"Oslo", "Rome"}) {
    for (const char* n : {"", "1", "\"x\""}) {
      std::string call = "<tool_call>get<arg_key>city</arg_key><arg_value>" + std::string(city);
      call += "</arg_value>";
      if (*n != '\0') call += "<arg_key>n</arg_key><arg_value>" + std::string(n) + "</arg_value>";
      words.insert(call + "</tool_call>");
    }
  }
  // Tags are single tokens: what only looks like them is not allowed, so the sets are not those of
  // all spellings; the words are.
  const std::string grammar =
      MakeReplyGrammar(rules, ReplyStart::kContent, ChatFamily::kGlm47).value();
  std::mt19937_64 random(testing::TestSeed());
  std::set<std::string> said;
  for (int turn = 0; turn < 80; ++turn)
    said.insert(Walk(*constraints_->Start(grammar), random, [](auto&&...) {}));
  EXPECT_EQ(said, words);

  rules.calls = ReplyRules::Calls::kNamed;
  rules.tool = "get_time";
  const std::string named =
      MakeReplyGrammar(rules, ReplyStart::kContent, ChatFamily::kGlm47).value();
  EXPECT_EQ(Walk(*constraints_->Start(named), random, [](auto&&...) {}),
            "<tool_call>get_time</tool_call>");
}

TEST_F(ConstraintsTest, ThinkingIsFreeButForEndingAndCalling) {
  ReplyRules rules;
  rules.schema = Parse(R"({"const": true})");
  const auto constraint = constraints_->Start(
      MakeReplyGrammar(rules, ReplyStart::kThinking, ChatFamily::kGlm47).value());
  for (const char* word : {"Ġthe", "}", "<tool_response>", "Ġthe"}) {
    const std::span<const uint32_t> allowed = constraint->Allowed();
    for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
      EXPECT_EQ(Has(allowed, id), tokenizer().HasToken(id) && !Ends(id) && id != Id("<tool_call>"))
          << id;
    }
    constraint->Append(Id(word));
  }
  constraint->Append(Id("</think>"));
  std::mt19937_64 random(testing::TestSeed());
  EXPECT_EQ(Walk(*constraint, random, [](auto&&...) {}), "true");
}

TEST_F(ConstraintsTest, OlderModelsOpenTheirThinkingThemselves) {
  ReplyRules rules;
  rules.schema = Parse(R"({"const": true})");
  const auto constraint = constraints_->Start(
      MakeReplyGrammar(rules, ReplyStart::kUndecided, ChatFamily::kGlm46).value());
  EXPECT_FALSE(Has(constraint->Allowed(), Id("Ġthe")));
  EXPECT_TRUE(Has(constraint->Allowed(), Id("<think>")));
  // A newline may stand before it, and no second one.
  ASSERT_TRUE(Has(constraint->Allowed(), Id("Ċ")));
  constraint->Append(Id("Ċ"));
  for (int32_t id = 0; id < tokenizer().vocab_size(); ++id)
    EXPECT_EQ(Has(constraint->Allowed(), id), id == Id("<think>")) << id;
  constraint->Append(Id("<think>"));
  EXPECT_TRUE(Has(constraint->Allowed(), Id("Ġthe")));
}

TEST_F(ConstraintsTest, ThinkingNeitherBeginsNorEndsWithinACall) {
  ReplyRules rules;
  rules.calls = ReplyRules::Calls::kRequired;
  rules.parallel_calls = false;
  rules.tools = Parse(R"([{"function": {"name": "say", "parameters": {"type": "object",
                          "properties": {"text": {"type": "string"}}, "required": ["text"]}}}])");
  const auto constraint = constraints_->Start(
      MakeReplyGrammar(rules, ReplyStart::kContent, ChatFamily::kGlm47).value());
  for (const int32_t id : tokenizer().Encode("<tool_call>say<arg_key>text</arg_key><arg_value>the"))
    constraint->Append(id);
  EXPECT_TRUE(Has(constraint->Allowed(), Id("Ġthe")));
  EXPECT_TRUE(Has(constraint->Allowed(), Id("</arg_value>")));
  EXPECT_FALSE(Has(constraint->Allowed(), Id("<think>")));
  EXPECT_FALSE(Has(constraint->Allowed(), Id("</think>")));
  // Nor spelled by other tokens.
  for (const char byte : std::string("</think")) constraint->Append(Id(std::string(1, byte)));
  EXPECT_FALSE(Has(constraint->Allowed(), Id(">")));
  EXPECT_TRUE(Has(constraint->Allowed(), Id("Ġthe")));
}

// What compiles or computes sets uses what all constraints share.
TEST_F(ConstraintsTest, TheyMayEndWhileOneCompiles) {
  std::string large = R"({"type": "object", "properties": {)";
  for (int i = 0; i < 100; ++i)
    large += absl::StrFormat(R"(%s"name%d": {"type": "string", "maxLength": %d})",
                             i > 0 ? ", " : "", i, i + 1);
  const std::string grammar = JsonGrammar(large + "}}");
  for (int turn = 0; turn < 20; ++turn) {
    auto constraints = MakeTokenConstraints(tokenizer(), text_->stop_token_ids);
    std::vector<std::unique_ptr<TokenConstraint>> begun;
    for (int i = 0; i < 3; ++i) begun.push_back(constraints->Start(grammar));
    std::this_thread::sleep_for(std::chrono::milliseconds(turn));
    begun.clear();
    constraints.reset();
  }
  EXPECT_TRUE(Has(constraints_->Start(grammar)->Allowed(), Id("{")));
}

TEST_F(ConstraintsTest, AfterTheEndOnlyTheEndMayCome) {
  const auto constraint = constraints_->Start(JsonGrammar(R"({"const": 1})"));
  constraint->Append(Id("1"));
  const int32_t end = text_->stop_token_ids[0];
  for (int turn = 0; turn < 3; ++turn) {
    const std::span<const uint32_t> allowed = constraint->Allowed();
    for (int32_t id = 0; id < tokenizer().vocab_size(); ++id)
      EXPECT_EQ(Has(allowed, id), Ends(id)) << turn << " " << id;
    constraint->Append(end);
  }
}

TEST_F(ConstraintsTest, TokensMayComeBeforeTheGrammarIsCompiled) {
  // As after a preemption: the whole answer so far at once.
  const std::string grammar = JsonGrammar(R"({"type": "array", "items": {"const": 1}})");
  const auto constraint = constraints_->Start(grammar);
  for (const int32_t id : tokenizer().Encode("[1, 1")) constraint->Append(id);
  const auto slow = constraints_->Start(grammar);
  for (const int32_t id : tokenizer().Encode("[1, 1")) {
    (void)slow->Allowed();
    slow->Append(id);
  }
  const std::span<const uint32_t> one = constraint->Allowed(), other = slow->Allowed();
  EXPECT_TRUE(std::equal(one.begin(), one.end(), other.begin(), other.end()));
  EXPECT_TRUE(Has(one, Id("]")));
  EXPECT_FALSE(Has(one, Id("1")));
}

TEST_F(ConstraintsTest, WhatIsNoGrammarIsRefusedOrOnlyEnds) {
  for (const char* bad : {"", "{}", "{\"start\":\"content\",\"tabs\":true,\"format\":{}}",
                          "{\"start\":\"content\",\"tabs\":true,\"format\":{\"type\":\"regex\","
                          "\"pattern\":\"([\"}}"}) {
    EXPECT_EQ(KindOf(constraints_->Check(bad)), ErrorKind::kRequest) << bad;
    const auto constraint = constraints_->Start(bad);
    EXPECT_TRUE(Has(constraint->Allowed(), text_->stop_token_ids[0]));
    EXPECT_FALSE(Has(constraint->Allowed(), Id("Ġthe")));
  }
  EXPECT_THAT(MessageOf(constraints_->Check("{\"start\":\"content\",\"tabs\":true,\"format\":{"
                                            "\"type\":\"regex\",\"pattern\":\"([\"}}")),
              HasSubstr("grammar"));
}

}  // namespace
}  // namespace lockstep
