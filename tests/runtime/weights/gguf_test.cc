#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "nlohmann/json.hpp"
#include "runtime/base/dtype.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/ggml_blocks.h"
#include "runtime/weights/gguf_names.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/golden.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using testing::CopyGguf;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::SourcePath;
using testing::TemporaryDirectory;

std::string ModelPath(const std::string& name) {
  return SourcePath("tests/goldens/models/" + name);
}

std::unique_ptr<Checkpoint> OpenOrDie(const std::string& name) {
  auto checkpoint = Checkpoint::Open(ModelPath(name));
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? *std::move(checkpoint) : nullptr;
}

// The numbers of a plain tensor.
std::vector<float> Values(const TensorInfo& info) {
  EXPECT_EQ(info.storage, Storage::kPlain);
  const DType type = info.format.plain_type();
  std::string bytes(info.data.bytes, '\0');
  EXPECT_TRUE(
      info.data.file->Read(info.data.offset, std::as_writable_bytes(std::span(bytes))).ok());
  std::vector<float> values(bytes.size() / SizeOf(type));
  for (size_t i = 0; i < values.size(); ++i) {
    if (type == DType::kF32) {
      std::memcpy(&values[i], &bytes[i * 4], 4);
      continue;
    }
    uint16_t half = 0;
    std::memcpy(&half, &bytes[i * 2], 2);
    values[i] = type == DType::kF16 ? HalfToFloat(half) : Bf16ToFloat(half);
  }
  return values;
}

// Equal but for what rounding to float16 takes.
void ExpectClose(const std::vector<float>& found, const std::vector<float>& expected,
                 const std::string& name) {
  ASSERT_EQ(found.size(), expected.size()) << name;
  for (size_t i = 0; i < found.size(); ++i) {
    ASSERT_LE(std::abs(found[i] - expected[i]), std::abs(expected[i]) * 0x1p-11f + 0x1p-25f)
        << name << " " << i;
  }
}

// The same names and shapes on both sides, but for those of deepseek2's split kv_b.
void ExpectSameTensors(const Checkpoint& gguf, const Checkpoint& hugging_face) {
  for (const auto& [name, info] : hugging_face.tensors()) {
    if (name.ends_with("kv_b_proj.weight")) continue;
    const TensorInfo* found = gguf.Find(name);
    ASSERT_NE(found, nullptr) << name;
    EXPECT_EQ(found->shape, info.shape) << name;
  }
  for (const auto& [name, info] : gguf.tensors()) {
    if (name.find(".k_b_proj.") != std::string::npos ||
        name.find(".v_b_proj.") != std::string::npos) {
      continue;
    }
    EXPECT_NE(hugging_face.Find(name), nullptr) << name;
  }
}

class GgufModelTest : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};

TEST_P(GgufModelTest, HoldsTheNamesAndShapesOfTheHuggingFaceFiles) {
  const auto gguf = OpenOrDie(std::string(GetParam().first) + ".gguf");
  const auto hugging_face = OpenOrDie(GetParam().second);
  ASSERT_TRUE(gguf != nullptr && hugging_face != nullptr);
  ExpectSameTensors(*gguf, *hugging_face);
}

TEST_P(GgufModelTest, ConfigSaysWhatConfigJsonSays) {
  const auto gguf = OpenOrDie(std::string(GetParam().first) + ".gguf");
  ASSERT_NE(gguf, nullptr);
  const json found = json::parse(gguf->config());
  json expected =
      json::parse(testing::ReadAll(ModelPath(std::string(GetParam().second) + "/config.json")));
  // Of no meaning to the arithmetic.
  for (const char* key :
       {"initializer_range", "attention_dropout", "use_cache", "dtype", "transformers_version"}) {
    expected.erase(key);
  }
  for (const auto& [key, value] : expected.items()) {
    ASSERT_TRUE(found.contains(key)) << key;
    EXPECT_EQ(found[key], value) << key;
  }
}

// A stored row has as many bytes as its type says, and the experts of a stack lie one behind the
// other.
TEST_P(GgufModelTest, PlacesAreThoseOfRowsAndExperts) {
  const auto gguf = OpenOrDie(std::string(GetParam().first) + ".gguf");
  ASSERT_NE(gguf, nullptr);
  std::vector<std::pair<uint64_t, uint64_t>> places;
  for (const auto& [name, info] : gguf->tensors()) {
    EXPECT_EQ(info.data.shape, info.shape) << name;
    EXPECT_EQ(info.storage == Storage::kPlain, info.format.plain()) << name;
    EXPECT_EQ(info.format.Name(), info.data.type) << name;
    const int64_t rows = info.shape.size() == 2 ? info.shape[0] : 1;
    EXPECT_EQ(info.data.bytes % static_cast<uint64_t>(rows), 0u) << name;
    places.emplace_back(info.data.offset, info.data.bytes);
  }
  std::sort(places.begin(), places.end());
  for (size_t i = 1; i < places.size(); ++i) {
    EXPECT_LE(places[i - 1].first + places[i - 1].second, places[i].first);
  }
}

INSTANTIATE_TEST_SUITE_P(Goldens, GgufModelTest,
                         ::testing::Values(std::pair("tiny-a-F16", "tiny-a"),
                                           std::pair("tiny-a-Q8_0", "tiny-a"),
                                           std::pair("tiny-a-Q4_0", "tiny-a"),
                                           std::pair("tiny-b-Q8_0", "tiny-b"),
                                           std::pair("tiny-k-Q4_K_M", "tiny-k"),
                                           std::pair("tiny-flash-F16", "tiny-flash")));

TEST(GgufCheckpointTest, Float16FilesHoldTheWeightsOfTheSafetensors) {
  for (const std::string name : {"tiny-a", "tiny-flash"}) {
    const auto gguf = OpenOrDie(name + "-F16.gguf");
    const auto hugging_face = OpenOrDie(name);
    ASSERT_TRUE(gguf != nullptr && hugging_face != nullptr);
    for (const auto& [tensor, info] : hugging_face->tensors()) {
      if (tensor.ends_with("kv_b_proj.weight")) continue;
      const TensorInfo* found = gguf->Find(tensor);
      ASSERT_NE(found, nullptr) << tensor;
      ExpectClose(Values(*found), Values(info), tensor);
    }
  }
}

TEST(GgufCheckpointTest, HeadsOfFlashAreThoseOfKvB) {
  const auto gguf = OpenOrDie("tiny-flash-F16.gguf");
  const auto hugging_face = OpenOrDie("tiny-flash");
  ASSERT_TRUE(gguf != nullptr && hugging_face != nullptr);
  constexpr size_t kHeads = 5, kNope = 24, kValue = 32, kLatent = 32;
  const std::string prefix = "model.layers.2.self_attn.";
  const std::vector<float> whole = Values(*hugging_face->Find(prefix + "kv_b_proj.weight"));
  for (size_t head = 0; head < kHeads; ++head) {
    const TensorInfo* k = gguf->Find(absl::StrFormat("%sk_b_proj.%d.weight", prefix, head));
    const TensorInfo* v = gguf->Find(absl::StrFormat("%sv_b_proj.%d.weight", prefix, head));
    ASSERT_TRUE(k != nullptr && v != nullptr);
    EXPECT_THAT(k->shape, ElementsAre(kLatent, kNope));
    EXPECT_THAT(v->shape, ElementsAre(kValue, kLatent));
    const size_t begin = head * (kNope + kValue) * kLatent;
    std::vector<float> keys(kNope * kLatent);
    for (size_t n = 0; n < kNope; ++n) {
      for (size_t l = 0; l < kLatent; ++l) keys[l * kNope + n] = whole[begin + n * kLatent + l];
    }
    ExpectClose(Values(*k), keys, "k");
    const auto values = whole.begin() + static_cast<int64_t>(begin + kNope * kLatent);
    ExpectClose(Values(*v), {values, values + kValue * kLatent}, "v");
  }
}

TEST(GgufCheckpointTest, QuantizedTypesKeepTheirFormats) {
  const auto gguf = OpenOrDie("tiny-k-Q4_K_M.gguf");
  ASSERT_NE(gguf, nullptr);
  const TensorInfo* expert = gguf->Find("model.layers.1.mlp.experts.2.down_proj.weight");
  ASSERT_NE(expert, nullptr);
  EXPECT_EQ(expert->data.type, "Q6_K");
  EXPECT_EQ(expert->storage, Storage::kGgml);
  EXPECT_EQ(expert->format, WeightFormat::Of(Encoding::kQ6_K));
  EXPECT_EQ(expert->data.bytes, 256u * 210);
  const TensorInfo* first = gguf->Find("model.layers.1.mlp.experts.0.down_proj.weight");
  EXPECT_EQ(expert->data.offset, first->data.offset + 2 * 256 * 210);
  EXPECT_EQ(gguf->Find("model.layers.0.self_attn.k_proj.weight")->data.type, "Q5_K");
}

TEST(GgufCheckpointTest, SplitFilesAreOneCheckpoint) {
  TemporaryDirectory directory;
  const auto parts = SplitGguf(CopyGguf(ModelPath("tiny-b-Q8_0.gguf")), 4);
  for (size_t i = 0; i < parts.size(); ++i) {
    directory.Write(absl::StrFormat("b-%05d-of-00004.gguf", i + 1), parts[i].Build());
  }
  const auto split = Checkpoint::Open(directory.File("b-00003-of-00004.gguf"));
  ASSERT_TRUE(split.ok()) << split.status();
  const auto whole = OpenOrDie("tiny-b-Q8_0.gguf");
  ASSERT_NE(whole, nullptr);
  ASSERT_EQ((*split)->tensors().size(), whole->tensors().size());
  EXPECT_EQ((*split)->config(), whole->config());
  for (const auto& [name, info] : whole->tensors()) {
    const TensorInfo* found = (*split)->Find(name);
    ASSERT_NE(found, nullptr) << name;
    std::string here(found->data.bytes, '\0'), there(info.data.bytes, '\0');
    ASSERT_TRUE(
        found->data.file->Read(found->data.offset, std::as_writable_bytes(std::span(here))).ok());
    ASSERT_TRUE(
        info.data.file->Read(info.data.offset, std::as_writable_bytes(std::span(there))).ok());
    EXPECT_EQ(here, there) << name;
  }
}

// The container's table of sizes and that of the conversion to portable rows are two.
TEST(GgufCheckpointTest, SizesOfTypesAgreeWithTheConversion) {
  for (uint32_t id = 0; id < 64; ++id) {
    const GgufType* type = FindGgufType(id);
    if (type == nullptr) continue;
    const auto format = FormatOfGgml(id);
    ASSERT_TRUE(format.ok()) << format.status();
    EXPECT_EQ(format->Name(), type->name);
    EXPECT_EQ(GgmlBlockWeights(*format), type->block_weights) << type->name;
    const auto bytes = GgmlRowBytes(*format, type->block_weights);
    ASSERT_TRUE(bytes.ok()) << bytes.status();
    EXPECT_EQ(*bytes, type->block_bytes) << type->name;
  }
}

TEST(GgufCheckpointTest, NamesOfLayersAreCanonical) {
  GgufName name;
  EXPECT_TRUE(TranslateGgufName(GgufArchitecture::kGlm4Moe, "blk.12.attn_q.bias", &name));
  EXPECT_EQ(name.Of(0), "model.layers.12.self_attn.q_proj.bias");
  EXPECT_TRUE(TranslateGgufName(GgufArchitecture::kGlm4Moe, "blk.3.ffn_up_exps.weight", &name));
  EXPECT_EQ(name.Of(7), "model.layers.3.mlp.experts.7.up_proj.weight");
  for (const char* wrong : {"blk.012.attn_q.bias", "blk.-1.attn_q.bias", "blk..attn_q.bias",
                            "blk.99999999999999999999.attn_q.bias", "blk.1", "blk.1.", "blk.",
                            "blk.1.attn_q_a.weight", "blk.1x.attn_q.bias", "other"}) {
    EXPECT_FALSE(TranslateGgufName(GgufArchitecture::kGlm4Moe, wrong, &name)) << wrong;
  }
}

// One golden, changed in one place.
class BadGgufTest : public ::testing::Test {
 protected:
  StatusOr<std::unique_ptr<Checkpoint>> Open(const GgufBuilder& builder) {
    directory_.Write("x.gguf", builder.Build());
    return OpenGguf(directory_.File("x.gguf"));
  }
  void ExpectError(const GgufBuilder& builder, const std::string& what) {
    const auto checkpoint = Open(builder);
    ASSERT_FALSE(checkpoint.ok()) << "not refused; expected: " << what;
    EXPECT_EQ(KindOf(checkpoint.status()), ErrorKind::kModel);
    EXPECT_THAT(MessageOf(checkpoint.status()), AllOf(HasSubstr("x.gguf"), HasSubstr(what)));
  }
  json ConfigOf(const GgufBuilder& builder) {
    const auto checkpoint = Open(builder);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    return checkpoint.ok() ? json::parse((*checkpoint)->config()) : json();
  }

  TemporaryDirectory directory_;
  GgufBuilder glm_ = CopyGguf(ModelPath("tiny-a-Q8_0.gguf"));
  GgufBuilder flash_ = CopyGguf(ModelPath("tiny-flash-F16.gguf"));
};

TEST_F(BadGgufTest, OtherArchitecturesAreNamed) {
  ExpectError(glm_.SetText("general.architecture", "llama"),
              "'llama' is not supported; this build reads glm4moe");
  ExpectError(glm_.Erase("general.architecture"), "(absent)");
}

TEST_F(BadGgufTest, MissingAndImpossibleSettingsAreNamed) {
  for (const char* key : {"block_count", "embedding_length", "expert_count", "context_length",
                          "attention.layer_norm_rms_epsilon", "rope.freq_base",
                          "rope.dimension_count", "attention.head_count"}) {
    GgufBuilder builder = glm_;
    ExpectError(builder.Erase(std::string("glm4moe.") + key),
                std::string("glm4moe.") + key + " is missing");
  }
  const auto with = [&](const std::string& key, int64_t value) {
    GgufBuilder builder = glm_;
    return builder.SetInteger("glm4moe." + key, value);
  };
  ExpectError(with("attention.head_count", 0), "head_count is 0");
  ExpectError(with("block_count", -1), "block_count is -1");
  ExpectError(with("embedding_length", int64_t{1} << 40), "outside");
  ExpectError(with("expert_gating_func", 1), "is not 2 (sigmoid)");
  ExpectError(with("nextn_predict_layers", 4), "leaves no layer");
  ExpectError(with("attention.value_length", 8), "differs from attention.key_length");
  ExpectError(with("rope.dimension_count", 17), "is above attention.key_length");
  ExpectError(with("rope.freq_base", 3), "is not a number");
  GgufBuilder builder = glm_;
  ExpectError(builder.SetText("glm4moe.rope.scaling.type", "yarn"), "'yarn'");
  ExpectError(with("rope.scaling.type", 1), "rope.scaling.type is not a text");
  builder = glm_;
  builder.SetRaw("glm4moe.rope.scaling.factor", 6, testing::RawBytes(1.0f));
  EXPECT_TRUE(Open(builder).ok());
  builder.SetRaw("glm4moe.rope.scaling.factor", 6, testing::RawBytes(4.0f));
  ExpectError(builder, "rope.scaling.factor is 4");
  EXPECT_TRUE(Open(builder.SetText("glm4moe.rope.scaling.type", "none")).ok());
  builder = glm_;
  builder.SetRaw("glm4moe.rope.scale_linear", 6, testing::RawBytes(2.0f));
  ExpectError(builder, "rope.scale_linear is 2");
  builder = glm_;
  ExpectError(builder.SetInteger("tokenizer.ggml.eot_token_id", 1000), "has no eot token 1000");
  builder = glm_;
  ExpectError(builder.Set("glm4moe.attention.head_count_kv", std::vector<int64_t>{2, 2, 4, 2}),
              "differs from layer to layer");
}

TEST_F(BadGgufTest, DeepSeeksOwnModelsAreRefused) {
  GgufBuilder builder = flash_;
  ExpectError(builder.Erase("deepseek2.attention.q_lora_rank"), "this is a DeepSeek model");
  builder = flash_;
  ExpectError(builder.SetInteger("deepseek2.expert_gating_func", 1), "sigmoid");
  builder = flash_;
  builder.Erase("deepseek2.expert_gating_func");
  std::erase_if(builder.tensors,
                [](const auto& tensor) { return tensor.name.ends_with("exp_probs_b.bias"); });
  ExpectError(builder, "this is a DeepSeek model");
}

TEST_F(BadGgufTest, FlashWithoutGatingFunctionIsSigmoid) {
  EXPECT_TRUE(Open(flash_.Erase("deepseek2.expert_gating_func")).ok());
}

TEST_F(BadGgufTest, UnknownAndMisshapenTensorsAreNamed) {
  GgufBuilder builder = glm_;
  builder.Find("blk.1.attn_q.bias").name = "blk.1.attn_sinks.weight";
  ExpectError(builder, "tensor blk.1.attn_sinks.weight is none of glm4moe");
  builder = glm_;
  builder.Find("blk.1.attn_q.weight").shape = {64, 64, 2};
  ExpectError(builder, "blk.1.attn_q.weight has 3 dimensions, not 1 or 2");
  builder = glm_;
  builder.Find("blk.1.ffn_up_exps.weight").shape = {32 * 32 * 16};
  ExpectError(builder, "blk.1.ffn_up_exps.weight has 1 dimensions, not 3");
  builder = glm_;
  builder.Find("token_embd.weight").name = "blk.0.ffn_down_exps.weight";
  ExpectError(builder, "token_embd.weight is missing");
  builder = glm_;
  builder.AddTensor("blk.9.ffn_up_exps.weight", {1, 1, 600'000}, 1, std::string(1'200'000, '\0'));
  ExpectError(builder, "a stack of 600000");
}

TEST_F(BadGgufTest, TensorsTellWhatTheMetadataDoesNot) {
  std::erase_if(glm_.tensors, [](const auto& tensor) {
    return tensor.name == "output.weight" || tensor.name.find("_norm.weight") == 10 ||
           tensor.name.ends_with("attn_q_norm.weight") ||
           tensor.name.ends_with("attn_k_norm.weight") || tensor.name.ends_with("attn_q.bias");
  });
  const json config = ConfigOf(glm_);
  EXPECT_EQ(config["tie_word_embeddings"], true);
  EXPECT_EQ(config["use_qk_norm"], false);
  EXPECT_EQ(config["attention_bias"], false);
}

// Quantizers drop the MTP layer, but leave its count.
TEST_F(BadGgufTest, MtpLayersWithoutTensorsAreNone) {
  GgufBuilder builder = CopyGguf(ModelPath("tiny-b-Q8_0.gguf"));
  EXPECT_EQ(ConfigOf(builder)["num_nextn_predict_layers"], 1);
  std::erase_if(builder.tensors,
                [](const auto& tensor) { return tensor.name.starts_with("blk.6."); });
  const json config = ConfigOf(builder);
  EXPECT_EQ(config["num_nextn_predict_layers"], 0);
  EXPECT_EQ(config["num_hidden_layers"], 6);
}

}  // namespace
}  // namespace lockstep
