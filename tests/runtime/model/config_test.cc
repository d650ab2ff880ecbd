#include "runtime/model/config.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/golden.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

nlohmann::json TinyA() {
  return nlohmann::json::parse(
      testing::ReadAll(testing::SourcePath("tests/goldens/models/tiny-a/config.json")));
}

std::string ErrorWith(const std::string& key, const nlohmann::json& value) {
  nlohmann::json config = TinyA();
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
  EXPECT_THAT(ErrorWith("quantization_config", {{"bits", 4}}), HasSubstr("quantization_config"));
  EXPECT_FALSE(ParseModelConfig("[]", "config.json").ok());
  EXPECT_FALSE(ParseModelConfig("{", "config.json").ok());
}

}  // namespace
}  // namespace lockstep
