#include "runtime/planner/known_models.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "runtime/model/config.h"
#include "runtime/model/tensor_groups.h"
#include "runtime/tensor/weight_format.h"

namespace lockstep {
namespace {

struct KnownShape {
  const char* name;
  const char* config;  // what its config.json says, but for the positions
  int64_t positions;
  bool draft_copies;  // the draft layer has its own embedding and head

  std::string Config() const {
    return absl::StrFormat("{\"max_position_embeddings\": %d, %s", positions, config + 1);
  }
};

// The config.json of the models, as far as sizes hang on it. The first is that of GLM-4.5 to 4.7.
constexpr const char* kGlm4 =
    R"({"model_type": "glm4_moe", "num_hidden_layers": 92, "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 3, "hidden_size": 5120, "num_attention_heads": 96,
    "num_key_value_heads": 8, "head_dim": 128, "attention_bias": true, "use_qk_norm": true,
    "partial_rotary_factor": 0.5, "rope_theta": 1000000, "intermediate_size": 12288,
    "moe_intermediate_size": 1536, "n_routed_experts": 160, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-5,
    "vocab_size": 151552})";
constexpr const char* kGlm45Air =
    R"({"model_type": "glm4_moe", "num_hidden_layers": 46, "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1, "hidden_size": 4096, "num_attention_heads": 96,
    "num_key_value_heads": 8, "head_dim": 128, "attention_bias": true, "use_qk_norm": false,
    "partial_rotary_factor": 0.5, "rope_theta": 1000000, "intermediate_size": 10944,
    "moe_intermediate_size": 1408, "n_routed_experts": 128, "n_shared_experts": 1,
    "num_experts_per_tok": 8, "routed_scaling_factor": 1.0, "rms_norm_eps": 1e-5,
    "vocab_size": 151552})";
constexpr const char* kGlm47Flash =
    R"({"model_type": "glm4_moe_lite", "num_hidden_layers": 47, "num_nextn_predict_layers": 1,
    "first_k_dense_replace": 1, "hidden_size": 2048, "num_attention_heads": 20,
    "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64,
    "v_head_dim": 256, "rope_theta": 1000000, "intermediate_size": 10240,
    "moe_intermediate_size": 1536, "n_routed_experts": 64, "n_shared_experts": 1,
    "num_experts_per_tok": 4, "routed_scaling_factor": 1.8, "rms_norm_eps": 1e-5,
    "vocab_size": 154880})";

constexpr KnownShape kShapes[] = {{"GLM-4.7", kGlm4, 202752, true},
                                  {"GLM-4.6", kGlm4, 202752, false},
                                  {"GLM-4.5", kGlm4, 131072, true},
                                  {"GLM-4.5-Air", kGlm45Air, 131072, true},
                                  {"GLM-4.7-Flash", kGlm47Flash, 202752, true}};

enum class Family : uint8_t { kHuggingFace, kGguf, kMlx };

// The formats of a whole checkpoint. `base` is that of routed experts, and of all that nothing
// else is said of.
struct Recipe {
  const char* name;
  Family family;
  WeightFormat base;
};

const std::vector<Recipe>& Recipes() {
  static const std::vector<Recipe> recipes = {
      {"bf16", Family::kHuggingFace, DType::kBF16},
      {"fp8", Family::kHuggingFace, WeightFormat::Fp8(kWholeRow)},
      {"nvfp4", Family::kHuggingFace, WeightFormat::Of(Encoding::kNvfp4)},
      {"q8_0", Family::kGguf, WeightFormat::Of(Encoding::kQ8_0)},
      {"q6_k", Family::kGguf, WeightFormat::Of(Encoding::kQ6_K)},
      {"q4_k_m", Family::kGguf, WeightFormat::Of(Encoding::kQ4_K)},
      {"q4_k_xl", Family::kGguf, WeightFormat::Of(Encoding::kQ4_K)},
      {"q4_0", Family::kGguf, WeightFormat::Of(Encoding::kQ4_0)},
      {"mlx8", Family::kMlx, WeightFormat::Mlx(8, 64, DType::kBF16)},
      {"mlx8-g32", Family::kMlx, WeightFormat::Mlx(8, 32, DType::kBF16)},
      {"mlx4", Family::kMlx, WeightFormat::Mlx(4, 64, DType::kBF16)}};
  return recipes;
}

// What llama-quantize calls "more bits": the layers whose attn_v and ffn_down get Q6_K.
bool GetsMoreBits(int64_t layer, int64_t layers) {
  return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

// Rows that blocks of 256 do not divide get blocks of 32.
WeightFormat WithFallback(const WeightFormat& format, int64_t inputs) {
  if (inputs % 256 == 0) return format;
  if (format.encoding == Encoding::kQ4_K) return WeightFormat::Of(Encoding::kQ5_0);
  if (format.encoding == Encoding::kQ6_K) return WeightFormat::Of(Encoding::kQ8_0);
  return format;
}

WeightFormat GgufFormat(const Recipe& recipe, const ModelConfig& config, TensorGroup group,
                        const std::string& name, int64_t inputs) {
  const WeightFormat more = WeightFormat::Of(Encoding::kQ6_K);
  WeightFormat format = recipe.base;
  const std::string_view kind = recipe.name;
  if (kind == "q4_k_m") {
    const int64_t layer = LayerOf(name).value_or(0);
    const bool chosen =
        name.find(".v_proj.") != std::string::npos || name.find(".down_proj.") != std::string::npos;
    if (group == TensorGroup::kHead || (chosen && GetsMoreBits(layer, config.num_hidden_layers)))
      format = more;
  } else if (kind == "q4_k_xl" && group != TensorGroup::kExperts) {
    format = more;
  }
  return WithFallback(format, inputs);
}

WeightFormat FormatOf(const Recipe& recipe, const ModelConfig& config, const std::string& name,
                      const std::vector<int64_t>& shape) {
  using enum TensorGroup;
  const TensorGroup group = GroupOf(config, name);
  const bool correction = name.ends_with("e_score_correction_bias");
  const bool matrix = shape.size() == 2 && group != kRouter;
  if (recipe.family == Family::kGguf) {
    return matrix ? GgufFormat(recipe, config, group, name, shape[1]) : WeightFormat(DType::kF32);
  }
  if (!matrix || group == kDraft) return correction ? DType::kF32 : DType::kBF16;
  const bool feed_forward = group == kExperts || group == kDense || group == kShared;
  const std::string_view kind = recipe.name;
  if (kind == "fp8" && !feed_forward && group != kAttention) return DType::kBF16;
  if (kind == "nvfp4" && !feed_forward) return DType::kBF16;
  return recipe.base;
}

// K-quants keep six-bit scales in files and bytes in portable rows; all other rows are as long in
// files as there.
uint64_t FileRowBytes(const WeightFormat& format, int64_t inputs) {
  const uint64_t bytes = LayoutOf(format, inputs, 0).row_bytes;
  const bool six_bits = format.encoding == Encoding::kQ4_K || format.encoding == Encoding::kQ5_K;
  return six_bits ? bytes - static_cast<uint64_t>(inputs / 256) * 4 : bytes;
}

class ShapedCheckpoint : public Checkpoint {
 public:
  ShapedCheckpoint(const KnownShape& known, const Recipe& recipe, ModelConfig model)
      : recipe_(recipe), model_(std::move(model)) {
    path_ = known.name;
    config_ = known.Config();
    config_file_ = path_;
    const ModelConfig& c = model_;
    Add("model.embed_tokens.weight", {c.vocab_size, c.hidden_size});
    Add("model.norm.weight", {c.hidden_size});
    Add("lm_head.weight", {c.vocab_size, c.hidden_size});
    for (int64_t layer = 0; layer < c.num_hidden_layers; ++layer) AddLayer(layer);
    if (recipe_.family == Family::kHuggingFace) AddDraftLayer(known.draft_copies);
  }

 private:
  void Add(const std::string& name, std::vector<int64_t> shape) {
    TensorInfo info;
    info.format = FormatOf(recipe_, model_, name, shape);
    const int64_t inputs = shape.back();
    const int64_t rows = shape.size() == 2 ? shape[0] : 1;
    info.data.bytes = static_cast<uint64_t>(rows) * FileRowBytes(info.format, inputs);
    info.data.type = info.format.Name();
    // Which quantized layout it is says how rows are read; none ever is.
    info.storage = info.format.plain() ? Storage::kPlain : Storage::kGgml;
    info.data.shape = shape;
    info.shape = std::move(shape);
    tensors_.emplace(name, std::move(info));
  }

  void AddFeedForward(const std::string& prefix, int64_t inner) {
    Add(prefix + "gate_proj.weight", {inner, model_.hidden_size});
    Add(prefix + "up_proj.weight", {inner, model_.hidden_size});
    Add(prefix + "down_proj.weight", {model_.hidden_size, inner});
  }

  void AddGroupedAttention(const std::string& prefix) {
    const ModelConfig& c = model_;
    const std::pair<const char*, int64_t> parts[] = {
        {"q", c.num_attention_heads}, {"k", c.num_key_value_heads}, {"v", c.num_key_value_heads}};
    for (const auto& [part, heads] : parts) {
      Add(prefix + part + "_proj.weight", {heads * c.head_dim, c.hidden_size});
      if (c.attention_bias) Add(prefix + part + "_proj.bias", {heads * c.head_dim});
    }
    Add(prefix + "o_proj.weight", {c.hidden_size, c.num_attention_heads * c.head_dim});
    if (!c.use_qk_norm) return;
    Add(prefix + "q_norm.weight", {c.head_dim});
    Add(prefix + "k_norm.weight", {c.head_dim});
  }

  void AddLatentAttention(const std::string& prefix) {
    const ModelConfig& c = model_;
    Add(prefix + "q_a_proj.weight", {c.q_lora_rank, c.hidden_size});
    Add(prefix + "q_a_layernorm.weight", {c.q_lora_rank});
    Add(prefix + "q_b_proj.weight", {c.num_attention_heads * c.head_dim, c.q_lora_rank});
    Add(prefix + "kv_a_proj_with_mqa.weight", {c.latent_width(), c.hidden_size});
    Add(prefix + "kv_a_layernorm.weight", {c.kv_lora_rank});
    Add(prefix + "kv_b_proj.weight",
        {c.num_attention_heads * (c.qk_nope_head_dim + c.v_head_dim), c.kv_lora_rank});
    Add(prefix + "o_proj.weight", {c.hidden_size, c.num_attention_heads * c.v_head_dim});
  }

  void AddLayer(int64_t layer) {
    const ModelConfig& c = model_;
    const std::string prefix = kLayerPrefix + std::to_string(layer) + ".";
    Add(prefix + "input_layernorm.weight", {c.hidden_size});
    Add(prefix + "post_attention_layernorm.weight", {c.hidden_size});
    if (c.has_latent_attention()) {
      AddLatentAttention(prefix + "self_attn.");
    } else {
      AddGroupedAttention(prefix + "self_attn.");
    }
    if (c.is_dense(layer)) return AddFeedForward(prefix + "mlp.", c.intermediate_size);
    Add(prefix + "mlp.gate.weight", {c.n_routed_experts, c.hidden_size});
    Add(prefix + "mlp.gate.e_score_correction_bias", {c.n_routed_experts});
    for (int64_t expert = 0; expert < c.n_routed_experts; ++expert) {
      AddFeedForward(prefix + "mlp.experts." + std::to_string(expert) + ".",
                     c.moe_intermediate_size);
    }
    AddFeedForward(prefix + "mlp.shared_experts.", c.n_shared_experts * c.moe_intermediate_size);
  }

  void AddDraftLayer(bool copies) {
    const ModelConfig& c = model_;
    AddLayer(c.num_hidden_layers);
    const std::string prefix = kLayerPrefix + std::to_string(c.num_hidden_layers) + ".";
    Add(prefix + "enorm.weight", {c.hidden_size});
    Add(prefix + "hnorm.weight", {c.hidden_size});
    Add(prefix + "eh_proj.weight", {c.hidden_size, 2 * c.hidden_size});
    Add(prefix + "shared_head.norm.weight", {c.hidden_size});
    if (!copies) return;
    Add(prefix + "embed_tokens.weight", {c.vocab_size, c.hidden_size});
    Add(prefix + "shared_head.head.weight", {c.vocab_size, c.hidden_size});
  }

  const Recipe& recipe_;
  const ModelConfig model_;
};

std::string Lower(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return lower;
}

}  // namespace

std::vector<std::string> KnownModels() {
  std::vector<std::string> names;
  for (const KnownShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

std::vector<std::string> KnownWeights() {
  std::vector<std::string> names;
  for (const Recipe& recipe : Recipes()) names.emplace_back(recipe.name);
  return names;
}

StatusOr<std::unique_ptr<Checkpoint>> KnownModel(std::string_view model, std::string_view weights) {
  const std::string wanted = Lower(model);
  const auto* shape = std::find_if(std::begin(kShapes), std::end(kShapes), [&](const auto& known) {
    const std::string name = Lower(known.name);
    return wanted == name || "glm-" + wanted == name;
  });
  if (shape == std::end(kShapes)) {
    return UsageError("'%s' is no checkpoint and no known model; known are %s", std::string(model),
                      absl::StrJoin(KnownModels(), ", "));
  }
  const auto recipe = std::find_if(Recipes().begin(), Recipes().end(),
                                   [&](const Recipe& r) { return Lower(weights) == r.name; });
  if (recipe == Recipes().end()) {
    return UsageError("--weights '%s' is none of the formats of %s: %s", std::string(weights),
                      shape->name, absl::StrJoin(KnownWeights(), ", "));
  }
  LOCKSTEP_ASSIGN_OR_RETURN(ModelConfig config, ParseModelConfig(shape->Config(), shape->name));
  return std::make_unique<ShapedCheckpoint>(*shape, *recipe, std::move(config));
}

}  // namespace lockstep
