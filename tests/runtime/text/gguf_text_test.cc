#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/text/model_text.h"
#include "tests/runtime/text/text_test_support.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using testing::CopyGguf;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

std::string ModelPath(const std::string& name) {
  return SourcePath("tests/goldens/models/" + name);
}

class GgufTextTest : public ::testing::Test {
 protected:
  std::string Write(const GgufBuilder& builder, const std::string& name = "x.gguf") {
    directory_.Write(name, builder.Build());
    return directory_.File(name);
  }
  void ExpectError(const GgufBuilder& builder, const std::string& what) {
    const auto text = LoadModelText(Write(builder), "auto");
    ASSERT_FALSE(text.ok()) << "not refused; expected: " << what;
    EXPECT_EQ(KindOf(text.status()), ErrorKind::kModel);
    EXPECT_THAT(MessageOf(text.status()), HasSubstr("x.gguf"));
    EXPECT_THAT(MessageOf(text.status()), HasSubstr(what));
  }
  // The tiny model without its tensors, which the text does not need.
  GgufBuilder Text() {
    GgufBuilder builder = CopyGguf(ModelPath("tiny-a-Q4_0.gguf"));
    builder.tensors.clear();
    return builder;
  }
  std::vector<std::string> Tokens() {
    return *OpenGgufFiles(ModelPath("tiny-a-Q4_0.gguf"))->Texts("tokenizer.ggml.tokens");
  }
  std::vector<int64_t> Types() {
    return *OpenGgufFiles(ModelPath("tiny-a-Q4_0.gguf"))->Integers("tokenizer.ggml.token_type");
  }
  TemporaryDirectory directory_;
};

TEST_F(GgufTextTest, TokenizerEqualsThatOfTokenizerJson) {
  const auto gguf = LoadTokenizer(ModelPath("tiny-a-Q4_0.gguf"));
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  const auto json = LoadTokenizer(ModelPath("tiny-a"));
  ASSERT_TRUE(json.ok()) << json.status();
  const Tokenizer &found = **gguf, &expected = **json;
  ASSERT_EQ(found.vocab_size(), expected.vocab_size());
  for (int32_t id = 0; id < expected.vocab_size(); ++id) {
    EXPECT_EQ(found.HasToken(id), expected.HasToken(id)) << id;
    EXPECT_EQ(found.TokenText(id), expected.TokenText(id)) << id;
    EXPECT_EQ(found.TokenBytes(id), expected.TokenBytes(id)) << id;
    EXPECT_EQ(found.IsAdded(id), expected.IsAdded(id)) << id;
    EXPECT_EQ(found.IsSpecial(id), expected.IsSpecial(id)) << found.TokenText(id);
  }
}

TEST_F(GgufTextTest, GoldenTextsEncodeAndDecodeEqual) {
  const auto tokenizer = LoadTokenizer(ModelPath("tiny-flash-F16.gguf"));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const TestJson golden = ReadJson("tests/goldens/goldens/tokenizer_small.json");
  ASSERT_EQ(golden["encode"].size(), 420u);
  const auto from_json = LoadTokenizer(ModelPath("tiny-a"));
  ASSERT_TRUE(from_json.ok()) << from_json.status();
  for (const TestJson& item : golden["encode"]) {
    const std::string text = item["text"];
    const std::vector<int32_t> ids = item["ids"];
    EXPECT_EQ((*tokenizer)->Encode(text), ids) << text;
    EXPECT_EQ((*tokenizer)->PreTokenize(text), (*from_json)->PreTokenize(text)) << text;
    EXPECT_EQ((*tokenizer)->Decode(ids, false), item["decoded"].get<std::string>());
    EXPECT_EQ((*tokenizer)->Decode(ids, true), item["decoded_skip_special"].get<std::string>());
  }
  for (const TestJson& item : golden["decode_only"]) {
    const std::vector<int32_t> ids = item["ids"];
    EXPECT_EQ((*tokenizer)->Decode(ids, false), item["decoded"].get<std::string>());
    EXPECT_EQ((*tokenizer)->Decode(ids, true), item["decoded_skip_special"].get<std::string>());
  }
}

// glm4 means ignore_merges: no merge leads to this token, and it is taken all the same.
TEST_F(GgufTextTest, WholeTokensAreTakenBeforeMerges) {
  GgufBuilder builder = Text();
  builder.Set("tokenizer.ggml.merges", std::vector<std::string>{});
  const auto tokenizer = LoadTokenizer(Write(builder));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const std::optional<int32_t> the = (*tokenizer)->IdOf("Ġthe");
  ASSERT_TRUE(the.has_value());
  EXPECT_THAT((*tokenizer)->Encode(" the"), ElementsAre(*the));
}

TEST_F(GgufTextTest, TemplateAndStopTokensAreThoseOfTheDirectory) {
  for (const auto& [name, family] : {std::pair("tiny-a-F16", ChatFamily::kGlm47),
                                     std::pair("tiny-b-Q8_0", ChatFamily::kGlm46)}) {
    const auto text = LoadModelText(ModelPath(std::string(name) + ".gguf"), "auto");
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(text->chat_family, family);
    EXPECT_EQ(text->chat_warning, "");
    EXPECT_THAT(text->stop_token_ids, ElementsAre(940, 947, 949));
    EXPECT_THAT(text->generation.eos_token_ids, ElementsAre(940, 947, 949));
    EXPECT_EQ(text->generation.pad_token_id, 940);
    EXPECT_EQ(text->generation.temperature, std::nullopt);
    EXPECT_EQ(text->tokenizer->vocab_size(), 976);
    const auto choice = ChooseChatFamily(ModelPath(std::string(name) + ".gguf"), "auto");
    ASSERT_TRUE(choice.ok()) << choice.status();
    EXPECT_EQ(choice->family, family);
  }
  const auto forced = LoadModelText(ModelPath("tiny-a-F16.gguf"), "glm-4.6");
  ASSERT_TRUE(forced.ok()) << forced.status();
  EXPECT_EQ(forced->chat_family, ChatFamily::kGlm46);
}

TEST_F(GgufTextTest, DirectoriesAndLaterPartsOpenToo) {
  const auto parts = SplitGguf(CopyGguf(ModelPath("tiny-a-Q4_0.gguf")), 2);
  Write(parts[0], "m-00001-of-00002.gguf");
  const std::string second = Write(parts[1], "m-00002-of-00002.gguf");
  for (const std::string& path : {second, directory_.path()}) {
    const auto text = LoadModelText(path, "auto");
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(text->tokenizer->vocab_size(), 976);
  }
}

// Converters mark whatever looks like <|...|> as control, and some all added tokens; what GLM's
// tokenizer.json keeps stays.
TEST_F(GgufTextTest, TokensThatOnlyLookSpecialAreKept) {
  GgufBuilder builder = Text();
  std::vector<int64_t> types = Types();
  for (int64_t& type : types) type = type == 4 ? 3 : type;
  builder.Set("tokenizer.ggml.token_type", types);
  const auto tokenizer = LoadTokenizer(Write(builder));
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  const auto expected = LoadTokenizer(ModelPath("tiny-a"));
  ASSERT_TRUE(expected.ok());
  for (int32_t id = 0; id < (*expected)->vocab_size(); ++id) {
    EXPECT_EQ((*tokenizer)->IsSpecial(id), (*expected)->IsSpecial(id))
        << (*expected)->TokenText(id);
  }
}

TEST_F(GgufTextTest, SamplingSettingsAreDefaults) {
  GgufBuilder builder = Text();
  builder.SetRaw("general.sampling.temp", 6, testing::RawBytes(0.7f));
  builder.SetRaw("general.sampling.top_p", 6, testing::RawBytes(0.95f));
  builder.SetInteger("general.sampling.top_k", 40);
  const auto text = LoadModelText(Write(builder), "auto");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->generation.temperature, 0.7);
  EXPECT_EQ(text->generation.top_p, 0.95);
  EXPECT_EQ(text->generation.top_k, 40);
  EXPECT_EQ(text->generation.warning, "");
  builder.SetRaw("general.sampling.top_p", 6, testing::RawBytes(1.5f));
  ExpectError(builder, "general.sampling.top_p is 1.5");
}

TEST_F(GgufTextTest, SettingsOfTheWrongKindAreNamedInOneWarning) {
  GgufBuilder builder = Text();
  builder.SetInteger("general.sampling.temp", 1);  // whole numbers are numbers
  builder.SetText("general.sampling.top_p", "0.9");
  builder.SetRaw("general.sampling.top_k", 6, testing::RawBytes(40.0f));
  builder.SetText("tokenizer.ggml.padding_token_id", "none");
  const auto text = LoadModelText(Write(builder), "auto");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->generation.temperature, 1.0);
  EXPECT_FALSE(text->generation.top_p || text->generation.top_k || text->generation.pad_token_id);
  EXPECT_THAT(text->generation.warning,
              ::testing::EndsWith("left out: general.sampling.top_p, general.sampling.top_k, "
                                  "tokenizer.ggml.padding_token_id"));
}

TEST_F(GgufTextTest, UnknownTokenizersNeedTokenizerJsonBesideThem) {
  GgufBuilder builder = Text();
  builder.SetText("tokenizer.ggml.pre", "llama-bpe");
  ExpectError(builder, "'llama-bpe'");
  ExpectError(builder, "put the checkpoint's tokenizer.json into the same directory");
  GgufBuilder none = Text();
  ExpectError(none.Erase("tokenizer.ggml.model"), "holds no tokenizer");
  directory_.Write("tokenizer.json", ReadFileOrDie(ModelPath("tiny-a/tokenizer.json")));
  for (const GgufBuilder& each : {builder, none}) {
    const auto text = LoadModelText(Write(each), "auto");
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(text->tokenizer->vocab_size(), 976);
    EXPECT_EQ(text->chat_family, ChatFamily::kGlm47);
  }
  // One that is known is used, whatever lies beside it.
  directory_.Write("tokenizer.json", "{}");
  EXPECT_TRUE(LoadModelText(Write(Text()), "auto").ok());
}

TEST_F(GgufTextTest, NoTemplateMeansRawCompletion) {
  GgufBuilder builder = Text();
  const auto text = LoadModelText(Write(builder.Erase("tokenizer.chat_template")), "auto");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->chat_family, std::nullopt);
  EXPECT_THAT(text->chat_warning, HasSubstr("x.gguf has no chat template"));
}

TEST_F(GgufTextTest, BrokenTokenizersAreNamed) {
  const auto with = [&](const std::string& key, const GgufValue& value) {
    GgufBuilder builder = Text();
    builder.Set("tokenizer.ggml." + key, value);
    return builder;
  };
  const auto tokens = [&](size_t id, const std::string& text) {
    std::vector<std::string> all = Tokens();
    all[id] = text;
    return with("tokens", all);
  };
  const auto types = [&](size_t id, int64_t type) {
    std::vector<int64_t> all = Types();
    all[id] = type;
    return with("token_type", all);
  };
  ExpectError(with("tokens", std::string("x")), "tokens: must be an array of texts");
  ExpectError(with("tokens", std::vector<std::string>{}), "tokens: must be an array of texts");
  ExpectError(with("token_type", std::vector<int64_t>{1, 1}), "a number for each token");
  ExpectError(with("merges", std::string("x")), "merges: must be an array");
  ExpectError(with("merges", std::vector<std::string>{"ab"}), "merges[0]: is not two tokens");
  ExpectError(with("merges", std::vector<std::string>{"a b c"}), "merges[0]: is not two tokens");
  ExpectError(with("merges", std::vector<std::string>{"a qqq"}),
              "\"qqq\" is not in the vocabulary");
  ExpectError(tokens(300, ""), "tokens[300]: is empty");
  ExpectError(tokens(300, "\xff"), "tokens[300]: is empty or no UTF-8");
  ExpectError(tokens(1, "!"), "tokens[1]: the token stands twice");
  ExpectError(tokens(941, "<|user|>"), "stands twice");
  ExpectError(tokens(950, std::string(2000, 'x')), "longer than");
  ExpectError(types(5, 6), "token_type[5]: 6");
  GgufBuilder lost = types(0, 5);
  lost.Set("tokenizer.ggml.merges", std::vector<std::string>{});
  ExpectError(lost, "the byte 0x21 has no token");
  ExpectError(with("eos_token_id", int64_t{990}), "eos_token_id 990 has no token");
  ExpectError(with("eot_token_id", int64_t{-1}), "is -1, no token id");
}

}  // namespace
}  // namespace lockstep
