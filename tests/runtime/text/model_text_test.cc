#include "runtime/text/model_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "tests/runtime/text/text_test_support.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

// A model directory of its own for each test.
class ModelTextTest : public testing::Test {
 protected:
  void SetUp() override {
    directory_ = testing::TempDir() + "model_text_" +
                 testing::UnitTest::GetInstance()->current_test_info()->name();
    std::filesystem::remove_all(directory_);
    std::filesystem::create_directories(directory_);
    Write("tokenizer.json",
          SmallTokenizerJson({}, {"<|endoftext|>", "<|user|>", "<|observation|>", "<x>"}).dump());
    Write("chat_template.jinja",
          ReadFileOrDie(SourcePath("tests/goldens/models/tiny-a/chat_template.jinja")));
    Write("generation_config.json", R"({"eos_token_id": [256]})");
  }
  void TearDown() override { std::filesystem::remove_all(directory_); }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(directory_ + "/" + name, std::ios::binary) << text;
  }
  void Remove(const std::string& name) { std::filesystem::remove(directory_ + "/" + name); }
  StatusOr<ModelText> Load(const std::string& chat_template = "auto") {
    return LoadModelText(directory_, chat_template);
  }
  std::string directory_;
};

TEST_F(ModelTextTest, LoadsTheGoldenModels) {
  for (const auto& [name, family] :
       {std::pair("tiny-a", ChatFamily::kGlm47), std::pair("tiny-b", ChatFamily::kGlm46)}) {
    const auto text =
        LoadModelText(SourcePath(std::string("tests/goldens/models/") + name), "auto");
    ASSERT_TRUE(text.ok()) << text.status();
    EXPECT_EQ(text->chat_family, family);
    EXPECT_EQ(text->chat_warning, "");
    EXPECT_THAT(text->stop_token_ids, ElementsAre(940, 947, 949));
    EXPECT_EQ(text->generation.temperature, 1.0);
    EXPECT_EQ(text->generation.top_p, 0.95);
    EXPECT_EQ(text->generation.do_sample, true);
    EXPECT_EQ(text->generation.pad_token_id, 940);
    EXPECT_EQ(text->generation.top_k, std::nullopt);
    EXPECT_EQ(text->tokenizer->vocab_size(), 976);
  }
}

TEST_F(ModelTextTest, StopTokensComeFromTheConfigsAndTheFamily) {
  auto text = Load();
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->stop_token_ids, ElementsAre(256, 257, 258));
  Write("generation_config.json", R"({"eos_token_id": 259})");
  text = Load();
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->stop_token_ids, ElementsAre(256, 257, 258, 259));
  Remove("generation_config.json");
  Remove("chat_template.jinja");
  Write("config.json", R"({"eos_token_id": [259, 65]})");
  text = Load();
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(text->stop_token_ids, ElementsAre(65, 259));
}

TEST_F(ModelTextTest, WithoutATemplateOnlyRawCompletionWorksAndTheErrorSaysSo) {
  Remove("chat_template.jinja");
  auto text = Load();
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_FALSE(text->chat_family);
  const Status refused = text->RequireChatFamily().status();
  EXPECT_EQ(KindOf(refused), ErrorKind::kUsage);
  EXPECT_THAT(MessageOf(refused), testing::AllOf(HasSubstr("only raw completion"),
                                                 HasSubstr("--raw"), HasSubstr("--chat-template")));
  Write("chat_template.jinja", "{{ messages }}");
  text = Load();
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_THAT(MessageOf(text->RequireChatFamily().status()),
              testing::AllOf(HasSubstr("only raw completion"),
                             HasSubstr(RecognizeChatTemplate("{{ messages }}").digest)));
}

TEST_F(ModelTextTest, AnUnknownTextWithMarkersWarnsWithItsHash) {
  const std::string changed =
      ReadFileOrDie(SourcePath("tests/goldens/models/tiny-b/chat_template.jinja")) + "{# x #}";
  Write("chat_template.jinja", changed);
  const auto text = Load();
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->chat_family, ChatFamily::kGlm46);
  EXPECT_THAT(text->chat_warning, HasSubstr(RecognizeChatTemplate(changed).digest));
  EXPECT_TRUE(text->RequireChatFamily().ok());
}

TEST_F(ModelTextTest, TheFlagOverridesTheTemplate) {
  auto text = Load("glm-4.6");
  ASSERT_TRUE(text.ok()) << text.status();
  EXPECT_EQ(text->chat_family, ChatFamily::kGlm46);
  EXPECT_EQ(text->chat_warning, "");
  text = Load("llama");
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(KindOf(text.status()), ErrorKind::kUsage);
  EXPECT_THAT(MessageOf(text.status()), HasSubstr("glm-4.7"));
}

TEST_F(ModelTextTest, TheTemplateMayStandInTokenizerConfig) {
  const std::string jinja = ReadFileOrDie(directory_ + "/chat_template.jinja");
  Remove("chat_template.jinja");
  Write("tokenizer_config.json", TestJson({{"chat_template", jinja}}).dump());
  EXPECT_EQ(Load()->chat_family, ChatFamily::kGlm47);
  TestJson named = TestJson::array();
  named.push_back({{"name", "rag"}, {"template", "x"}});
  named.push_back({{"name", "default"}, {"template", jinja}});
  Write("tokenizer_config.json", TestJson({{"chat_template", named}}).dump());
  EXPECT_EQ(Load()->chat_family, ChatFamily::kGlm47);
  Write("tokenizer_config.json", "{");
  EXPECT_EQ(KindOf(Load().status()), ErrorKind::kModel);
}

TEST_F(ModelTextTest, GenerationDefaultsAreValidated) {
  Write("generation_config.json",
        R"({"eos_token_id":null,"temperature":0,"top_p":1,"top_k":-1,
            "min_p":0.1,"repetition_penalty":1.1,"do_sample":false})");
  const auto good = LoadGenerationDefaults(directory_);
  ASSERT_TRUE(good.ok()) << good.status();
  EXPECT_EQ(good->temperature, 0.0);
  EXPECT_EQ(good->top_k, 0);
  EXPECT_EQ(good->do_sample, false);
  EXPECT_TRUE(good->eos_token_ids.empty());
  for (const char* bad :
       {R"({"temperature": -1})", R"({"temperature": "1"})", R"({"temperature": 1e400})",
        R"({"top_p": 0})", R"({"top_p": 1.5})", R"({"min_p": 2})", R"({"top_k": -2})",
        R"({"top_k": 1.5})", R"({"repetition_penalty": 0})", R"({"do_sample": 1})",
        R"({"eos_token_id": -1})", R"({"eos_token_id": "x"})", R"({"eos_token_id": [1, null]})",
        R"({"eos_token_id": 4294967296})", R"({"pad_token_id": 1.5})", R"([])", R"({)"}) {
    Write("generation_config.json", bad);
    const auto refused = LoadGenerationDefaults(directory_);
    ASSERT_FALSE(refused.ok()) << bad;
    EXPECT_EQ(KindOf(refused.status()), ErrorKind::kModel) << bad;
    EXPECT_THAT(MessageOf(refused.status()), HasSubstr("generation_config.json")) << bad;
  }
  Remove("generation_config.json");
  EXPECT_TRUE(LoadGenerationDefaults(directory_).ok());
}

TEST_F(ModelTextTest, AStopTokenBeyondTheTokenizerIsRefused) {
  Write("generation_config.json", R"({"eos_token_id": 151336})");
  const auto text = Load();
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(KindOf(text.status()), ErrorKind::kModel);
  EXPECT_THAT(MessageOf(text.status()), HasSubstr("151336"));
}

}  // namespace
}  // namespace lockstep
