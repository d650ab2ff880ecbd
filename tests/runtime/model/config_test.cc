#include "runtime/model/config.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/golden.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

nlohmann::json ConfigFile(const std::string& model) {
  return nlohmann::json::parse(
      testing::ReadAll(testing::SourcePath("tests/goldens/models/" + model + "/config.json")));
}
nlohmann::json TinyA() { return ConfigFile("tiny-a"); }

std::string ErrorWith(const std::string& key, const nlohmann::json& value,
                      const std::string& model = "tiny-a") {
  nlohmann::json config = ConfigFile(model);
  if (value.is_discarded()) {
    config.erase(key);
  } else {
    config[key] = value;
  }
  const auto parsed = ParseModelConfig(config.dump(), "config.json");
  EXPECT_FALSE(parsed.ok()) << key << " " << value;
  if (parsed.ok()) return "";
  EXPECT_EQ(ExitCode(parsed.status()), 3);
  return MessageOf(parsed.status());
}

TEST(ParseModelConfig, ReadsBothFormsOfTheRopeKeys) {
  nlohmann::json config = TinyA();
  const ModelConfig flat = ParseModelConfig(config.dump(), "config.json").value();
  EXPECT_EQ(flat.rope_theta, 1e6);
  EXPECT_EQ(flat.rotary_dim, 8);
  EXPECT_EQ(flat.eos_token_ids, (std::vector<int32_t>{940, 947, 949}));
  config.erase("rope_theta");
  config.erase("partial_rotary_factor");
  config["rope_parameters"] = {
      {"rope_theta", 5e5}, {"partial_rotary_factor", 0.5}, {"rope_type", "default"}};
  const ModelConfig nested = ParseModelConfig(config.dump(), "config.json").value();
  EXPECT_EQ(nested.rope_theta, 5e5);
  EXPECT_EQ(nested.rotary_dim, 8);
}

TEST(ParseModelConfig, NamesTheKeyThatIsWrong) {
  const auto gone = nlohmann::json(nlohmann::json::value_t::discarded);
  EXPECT_THAT(ErrorWith("model_type", "llama"),
              AllOf(HasSubstr("'llama' is not supported"), HasSubstr("glm4_moe")));
  EXPECT_THAT(ErrorWith("hidden_size", gone), HasSubstr("hidden_size is missing"));
  EXPECT_THAT(ErrorWith("hidden_size", -4), HasSubstr("hidden_size is -4"));
  EXPECT_THAT(ErrorWith("hidden_size", 1e30), HasSubstr("hidden_size is not a whole number"));
  EXPECT_THAT(ErrorWith("hidden_size", 18446744073709551615ull),
              HasSubstr("hidden_size is too large"));
  EXPECT_THAT(ErrorWith("num_key_value_heads", 3),
              HasSubstr("does not divide num_attention_heads"));
  EXPECT_THAT(ErrorWith("num_experts_per_tok", 9), HasSubstr("num_experts_per_tok"));
  EXPECT_THAT(ErrorWith("n_group", 3), HasSubstr("n_group does not divide"));
  EXPECT_THAT(ErrorWith("rms_norm_eps", "small"), HasSubstr("rms_norm_eps is not a number"));
  EXPECT_THAT(ErrorWith("partial_rotary_factor", 0.2), HasSubstr("odd number"));
  EXPECT_THAT(ErrorWith("rope_scaling", {{"type", "yarn"}}), HasSubstr("rope_scaling"));
  EXPECT_THAT(ErrorWith("eos_token_id", 5000), HasSubstr("eos_token_id"));
  EXPECT_THAT(ErrorWith("hidden_act", "gelu"), HasSubstr("hidden_act"));
  EXPECT_THAT(ErrorWith("scoring_func", "softmax"), HasSubstr("scoring_func is not 'sigmoid'"));
  EXPECT_THAT(ErrorWith("topk_method", "greedy"), HasSubstr("topk_method"));
  EXPECT_FALSE(ParseModelConfig("[]", "config.json").ok());
  EXPECT_FALSE(ParseModelConfig("{", "config.json").ok());
}

TEST(ParseModelConfig, ReadsFlash) {
  const ModelConfig config =
      ParseModelConfig(ConfigFile("tiny-flash").dump(), "config.json").value();
  EXPECT_TRUE(config.has_latent_attention());
  EXPECT_EQ(config.q_lora_rank, 24);
  EXPECT_EQ(config.kv_lora_rank, 32);
  EXPECT_EQ(config.qk_nope_head_dim, 24);
  EXPECT_EQ(config.qk_rope_head_dim, 8);
  EXPECT_EQ(config.v_head_dim, 32);
  EXPECT_EQ(config.head_dim, 32);  // not config.json's, which is that of the rotated part
  EXPECT_EQ(config.rotary_dim, 8);
  EXPECT_EQ(config.latent_width(), 40);
  EXPECT_EQ(config.first_k_dense_replace, 1);
  EXPECT_EQ(config.routed_scaling_factor, 1.8);
  EXPECT_FALSE(ParseModelConfig(TinyA().dump(), "config.json").value().has_latent_attention());
}

TEST(ParseModelConfig, ReadsFlashAsTransformersFiveWritesIt) {
  nlohmann::json config = ConfigFile("tiny-flash");
  const ModelConfig flat = ParseModelConfig(config.dump(), "config.json").value();
  for (const char* key : {"rope_theta", "partial_rotary_factor", "rope_scaling",
                          "first_k_dense_replace", "topk_method", "head_dim"})
    config.erase(key);
  config["rope_parameters"] = {{"rope_theta", 1e6}, {"rope_type", "default"}};
  config["mlp_layer_types"] = {"dense", "sparse", "sparse", "sparse"};
  config["rope_interleave"] = true;
  config["scoring_func"] = "sigmoid";
  config["qk_head_dim"] = 32;
  const ModelConfig nested = ParseModelConfig(config.dump(), "config.json").value();
  EXPECT_EQ(nested.rotary_dim, flat.rotary_dim);
  EXPECT_EQ(nested.rope_theta, flat.rope_theta);
  EXPECT_EQ(nested.first_k_dense_replace, 1);
  config["mlp_layer_types"] = {"dense", "dense", "sparse", "sparse"};
  EXPECT_EQ(ParseModelConfig(config.dump(), "config.json").value().first_k_dense_replace, 2);
}

TEST(ParseModelConfig, MissingKeysMeanWhatTransformersTakes) {
  nlohmann::json base = TinyA();
  base.erase("partial_rotary_factor");
  base.erase("routed_scaling_factor");
  const ModelConfig moe = ParseModelConfig(base.dump(), "config.json").value();
  EXPECT_EQ(moe.rotary_dim, moe.head_dim / 2);
  EXPECT_EQ(moe.routed_scaling_factor, 1.0);
  nlohmann::json flash = ConfigFile("tiny-flash");
  flash.erase("partial_rotary_factor");
  flash.erase("routed_scaling_factor");
  const ModelConfig lite = ParseModelConfig(flash.dump(), "config.json").value();
  EXPECT_EQ(lite.rotary_dim, lite.qk_rope_head_dim);
  EXPECT_EQ(lite.routed_scaling_factor, 1.8);
}

TEST(ParseModelConfig, NamesTheKeyOfFlashThatIsWrong) {
  const auto gone = nlohmann::json(nlohmann::json::value_t::discarded);
  const auto error = [](const char* key, const nlohmann::json& value) {
    return ErrorWith(key, value, "tiny-flash");
  };
  EXPECT_THAT(error("q_lora_rank", gone), HasSubstr("q_lora_rank is missing"));
  EXPECT_THAT(error("q_lora_rank", nullptr), HasSubstr("q_lora_rank is missing or null"));
  EXPECT_THAT(error("q_lora_rank", 0), HasSubstr("q_lora_rank is 0"));
  EXPECT_THAT(error("kv_lora_rank", gone), HasSubstr("kv_lora_rank is missing"));
  EXPECT_THAT(error("kv_lora_rank", -1), HasSubstr("kv_lora_rank is -1"));
  EXPECT_THAT(error("kv_lora_rank", int64_t{1} << 40), HasSubstr("kv_lora_rank is"));
  EXPECT_THAT(error("qk_nope_head_dim", "24"), HasSubstr("qk_nope_head_dim is not a whole"));
  EXPECT_THAT(error("qk_rope_head_dim", gone), HasSubstr("qk_rope_head_dim is missing"));
  EXPECT_THAT(error("qk_rope_head_dim", 7), HasSubstr("odd number"));
  EXPECT_THAT(error("v_head_dim", gone), HasSubstr("v_head_dim is missing"));
  EXPECT_THAT(error("partial_rotary_factor", 0.5), HasSubstr("qk_rope_head_dim"));
  EXPECT_THAT(error("qk_head_dim", 33), HasSubstr("qk_head_dim is not"));
  EXPECT_THAT(error("attention_bias", true), HasSubstr("attention_bias"));
  EXPECT_THAT(error("rope_interleave", false), HasSubstr("rope_interleave"));
  EXPECT_THAT(error("scoring_func", "softmax"), HasSubstr("scoring_func"));
  EXPECT_THAT(error("num_attention_heads", 2000), HasSubstr("num_attention_heads is above"));
  EXPECT_THAT(error("mlp_layer_types", "dense"), HasSubstr("mlp_layer_types is not a list"));
  EXPECT_THAT(error("mlp_layer_types", {"dense", "sparse"}), HasSubstr("list of 4 layers"));
  EXPECT_THAT(error("mlp_layer_types", {"dense", "moe", "sparse", "sparse"}),
              HasSubstr("something else than"));
  EXPECT_THAT(error("mlp_layer_types", {"dense", "sparse", "dense", "sparse"}),
              HasSubstr("dense layer behind a sparse one"));
  EXPECT_THAT(error("mlp_layer_types", {"dense", "dense", "sparse", "sparse"}),
              HasSubstr("first_k_dense_replace"));
}

}  // namespace
}  // namespace lockstep
