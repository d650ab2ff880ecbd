#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/runtime/text/text_test_support.h"

namespace lockstep {
namespace {

using testing::HasSubstr;

struct BadFile {
  const char* name;
  std::function<void(TestJson*)> change;
  std::vector<const char*> said;  // beside the file's name
};

std::ostream& operator<<(std::ostream& out, const BadFile& bad) { return out << bad.name; }

class BadTokenizerTest : public testing::TestWithParam<BadFile> {};

TEST_P(BadTokenizerTest, IsRefusedWithFileKeyAndRemedy) {
  TestJson json = SmallTokenizerJson({{"a", "b"}});
  ASSERT_TRUE(LoadFrom(json).ok());
  GetParam().change(&json);
  const auto tokenizer = LoadFrom(json);
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(KindOf(tokenizer.status()), ErrorKind::kModel);
  EXPECT_EQ(ExitCode(tokenizer.status()), 3);
  const std::string message = MessageOf(tokenizer.status());
  EXPECT_THAT(message, HasSubstr("small.json"));
  EXPECT_THAT(message,
              testing::AnyOf(HasSubstr("use the tokenizer.json"), HasSubstr("use a byte-level")));
  for (const char* part : GetParam().said) EXPECT_THAT(message, HasSubstr(part));
}

TestJson& Steps(TestJson* j) { return (*j)["pre_tokenizer"]["pretokenizers"]; }

INSTANTIATE_TEST_SUITE_P(
    Files, BadTokenizerTest,
    testing::Values(
        BadFile{"normalizer",
                [](TestJson* j) {
                  (*j)["normalizer"] = {{"type", "NFC"}};
                },
                {"normalizer", "NFC"}},
        BadFile{"no_model", [](TestJson* j) { j->erase("model"); }, {"model"}},
        BadFile{"top_level", [](TestJson* j) { *j = TestJson::array(); }, {"top level"}},
        BadFile{"model_type",
                [](TestJson* j) { (*j)["model"]["type"] = "Unigram"; },
                {"model.type", "Unigram"}},
        BadFile{"dropout", [](TestJson* j) { (*j)["model"]["dropout"] = 0.1; }, {"model.dropout"}},
        BadFile{
            "unk", [](TestJson* j) { (*j)["model"]["unk_token"] = "<unk>"; }, {"model.unk_token"}},
        BadFile{"prefix",
                [](TestJson* j) { (*j)["model"]["continuing_subword_prefix"] = "##"; },
                {"subword_prefix"}},
        BadFile{"suffix",
                [](TestJson* j) { (*j)["model"]["end_of_word_suffix"] = "</w>"; },
                {"word_suffix"}},
        BadFile{"byte_fallback",
                [](TestJson* j) { (*j)["model"]["byte_fallback"] = true; },
                {"byte_fallback"}},
        BadFile{"ignore_merges",
                [](TestJson* j) { (*j)["model"]["ignore_merges"] = 1; },
                {"ignore_merges"}},
        BadFile{"no_vocab", [](TestJson* j) { (*j)["model"].erase("vocab"); }, {"model.vocab"}},
        BadFile{"empty_vocab",
                [](TestJson* j) { (*j)["model"]["vocab"] = TestJson::object(); },
                {"empty"}},
        BadFile{"negative_id",
                [](TestJson* j) { (*j)["model"]["vocab"]["a"] = -1; },
                {"negative", "vocab[\"a\"]"}},
        BadFile{
            "absurd_id", [](TestJson* j) { (*j)["model"]["vocab"]["a"] = 2000000000; }, {"absurd"}},
        BadFile{"huge_id",
                [](TestJson* j) { (*j)["model"]["vocab"]["a"] = 18446744073709551615ull; },
                {"64-bit"}},
        BadFile{"text_id", [](TestJson* j) { (*j)["model"]["vocab"]["a"] = "7"; }, {"integer"}},
        BadFile{"duplicate_id",
                [](TestJson* j) { (*j)["model"]["vocab"]["a"] = 66; },
                {"66", "also that of"}},
        BadFile{"empty_token", [](TestJson* j) { (*j)["model"]["vocab"][""] = 900; }, {"empty"}},
        BadFile{
            "lost_byte", [](TestJson* j) { (*j)["model"]["vocab"].erase("z"); }, {"0x7a", "lost"}},
        BadFile{"merges_object",
                [](TestJson* j) { (*j)["model"]["merges"] = TestJson::object(); },
                {"model.merges"}},
        BadFile{"merge_unknown",
                [](TestJson* j) {
                  (*j)["model"]["merges"].push_back({"a", "qq"});
                },
                {"merges[1]", "qq"}},
        BadFile{"merge_result",
                [](TestJson* j) { (*j)["model"]["merges"].push_back("b a"); },
                {"merges[1]", "\"ba\""}},
        BadFile{"merge_three",
                [](TestJson* j) { (*j)["model"]["merges"].push_back("a b c"); },
                {"merges[1]"}},
        BadFile{"merge_one",
                [](TestJson* j) { (*j)["model"]["merges"].push_back("ab"); },
                {"merges[1]"}},
        BadFile{"merge_kind",
                [](TestJson* j) {
                  (*j)["model"]["merges"].push_back({1, 2});
                },
                {"merges[1]"}},
        BadFile{
            "added_no_object", [](TestJson* j) { (*j)["added_tokens"] = "x"; }, {"added_tokens"}},
        BadFile{"added_empty",
                [](TestJson* j) { (*j)["added_tokens"][0]["content"] = ""; },
                {"added_tokens[0].content"}},
        BadFile{"added_long",
                [](TestJson* j) { (*j)["added_tokens"][0]["content"] = std::string(5000, 'x'); },
                {"longer"}},
        BadFile{"added_no_id",
                [](TestJson* j) { (*j)["added_tokens"][0].erase("id"); },
                {"added_tokens[0].id"}},
        BadFile{"added_negative",
                [](TestJson* j) { (*j)["added_tokens"][0]["id"] = -7; },
                {"negative"}},
        BadFile{"added_taken_id", [](TestJson* j) { (*j)["added_tokens"][0]["id"] = 65; }, {"65"}},
        BadFile{"added_twice",
                [](TestJson* j) { (*j)["added_tokens"].push_back((*j)["added_tokens"][0]); },
                {"twice"}},
        BadFile{"added_other_id",
                [](TestJson* j) {
                  (*j)["added_tokens"][0]["content"] = "ab";
                  (*j)["added_tokens"][0]["id"] = 700;
                },
                {"700"}},
        BadFile{"added_lstrip",
                [](TestJson* j) { (*j)["added_tokens"][0]["lstrip"] = true; },
                {"lstrip"}},
        BadFile{"added_rstrip",
                [](TestJson* j) { (*j)["added_tokens"][0]["rstrip"] = true; },
                {"rstrip"}},
        BadFile{"added_single_word",
                [](TestJson* j) { (*j)["added_tokens"][0]["single_word"] = true; },
                {"single_word"}},
        BadFile{"added_flag_kind",
                [](TestJson* j) { (*j)["added_tokens"][0]["special"] = "yes"; },
                {"special"}},
        BadFile{"decoder_absent", [](TestJson* j) { (*j)["decoder"] = nullptr; }, {"decoder"}},
        BadFile{"decoder_other",
                [](TestJson* j) { (*j)["decoder"]["type"] = "WordPiece"; },
                {"decoder", "WordPiece"}},
        BadFile{"post_processor",
                [](TestJson* j) {
                  (*j)["post_processor"] = {{"type", "TemplateProcessing"}};
                },
                {"TemplateProcessing"}},
        BadFile{"no_pre_tokenizer",
                [](TestJson* j) { (*j)["pre_tokenizer"] = nullptr; },
                {"pre_tokenizer"}},
        BadFile{"pre_tokenizer_kind",
                [](TestJson* j) {
                  (*j)["pre_tokenizer"] = {{"type", "Whitespace"}};
                },
                {"Whitespace"}},
        BadFile{"no_byte_level", [](TestJson* j) { Steps(j).erase(1); }, {"ByteLevel"}},
        BadFile{"after_byte_level",
                [](TestJson* j) { Steps(j).push_back(Steps(j)[0]); },
                {"after ByteLevel"}},
        BadFile{"prefix_space",
                [](TestJson* j) { Steps(j)[1]["add_prefix_space"] = true; },
                {"add_prefix_space"}},
        BadFile{"behavior", [](TestJson* j) { Steps(j)[0]["behavior"] = "Removed"; }, {"behavior"}},
        BadFile{"invert", [](TestJson* j) { Steps(j)[0]["invert"] = true; }, {"invert"}},
        BadFile{"bad_regex",
                [](TestJson* j) { Steps(j)[0]["pattern"]["Regex"] = "(a"; },
                {"Regex", "character 2"}},
        BadFile{"no_pattern", [](TestJson* j) { Steps(j)[0].erase("pattern"); }, {"pattern"}},
        BadFile{"empty_literal",
                [](TestJson* j) {
                  Steps(j)[0]["pattern"] = {{"String", ""}};
                },
                {"pattern"}}),
    [](const testing::TestParamInfo<BadFile>& bad) { return bad.param.name; });

TEST(TokenizerFileTest, TextThatIsNoJsonIsRefused) {
  for (const std::string& text : {std::string(), std::string("{"), std::string("{\"model\": \xFF}"),
                                  std::string(100000, '['), std::string("{\"a\":1,\"a\":2}")}) {
    const auto tokenizer = Tokenizer::FromJson(text, "broken.json");
    ASSERT_FALSE(tokenizer.ok());
    EXPECT_EQ(KindOf(tokenizer.status()), ErrorKind::kModel);
    EXPECT_THAT(MessageOf(tokenizer.status()), HasSubstr("broken.json"));
  }
}

TEST(TokenizerFileTest, ATruncatedFileIsRefused) {
  const std::string whole =
      ReadFileOrDie(SourcePath("tests/goldens/tokenizers/small/tokenizer.json"));
  for (size_t size = 0; size < whole.size(); size += whole.size() / 37) {
    EXPECT_FALSE(Tokenizer::FromJson(whole.substr(0, size), "cut.json").ok()) << size;
  }
}

TEST(TokenizerFileTest, AMissingFileIsNamed) {
  const auto tokenizer = Tokenizer::Load("/nonexistent/tokenizer.json");
  ASSERT_FALSE(tokenizer.ok());
  EXPECT_EQ(KindOf(tokenizer.status()), ErrorKind::kModel);
  EXPECT_THAT(MessageOf(tokenizer.status()), HasSubstr("/nonexistent/tokenizer.json"));
}

TEST(TokenizerFileTest, HarmlessDeviationsAreAccepted) {
  TestJson json = SmallTokenizerJson({{"a", "b"}});
  json["normalizer"] = {{"type", "Sequence"}, {"normalizers", TestJson::array()}};
  json["model"]["merges"] = {"a b"};
  json["model"]["dropout"] = nullptr;
  json["model"]["continuing_subword_prefix"] = "";
  json["post_processor"] = {{"type", "ByteLevel"}};
  json.erase("added_tokens");
  const auto tokenizer = LoadFrom(json);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->Encode("ab"), (std::vector<int32_t>{256}));
}

}  // namespace
}  // namespace lockstep
