#include "runtime/model/config.h"

#include <algorithm>
#include <cmath>

#include "nlohmann/json.hpp"
#include "runtime/kernels/backend.h"
#include "runtime/weights/bounded_json.h"

namespace lockstep {
namespace {

using nlohmann::json;

// Far above any model there is; products of a few of these fit 63 bits.
constexpr int64_t kMaxDimension = int64_t{1} << 24;
using kernels::kMaxExperts;

// Reads the keys of one config.json; the first thing wrong is kept and every later read is skipped.
class Reader {
 public:
  Reader(const json& root, std::string name) : root_(root), name_(std::move(name)) {}

  const Status& status() const { return status_; }
  const json* Find(const char* key) const {
    const auto found = root_.find(key);
    return found == root_.end() || found->is_null() ? nullptr : &*found;
  }
  int64_t Count(const char* key, int64_t lowest, int64_t highest,
                const int64_t* fallback = nullptr) {
    const json* value = Find(key);
    if (value == nullptr && fallback != nullptr) return *fallback;
    if (value == nullptr) return Fail(key, "is missing");
    if (!value->is_number_integer()) return Fail(key, "is not a whole number");
    if (value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX)
      return Fail(key, "is too large");
    const auto number = value->get<int64_t>();
    if (number < lowest || number > highest) {
      return Fail(key, absl::StrFormat("is %d, outside %d .. %d", number, lowest, highest));
    }
    return number;
  }
  int64_t CountOr(const char* key, int64_t lowest, int64_t highest, int64_t fallback) {
    return Count(key, lowest, highest, &fallback);
  }
  double Number(const json* value, const char* key, double lowest, double highest) {
    if (value == nullptr) return static_cast<double>(Fail(key, "is missing"));
    if (!value->is_number()) return static_cast<double>(Fail(key, "is not a number"));
    const auto number = value->get<double>();
    if (!(number >= lowest && number <= highest)) {
      return static_cast<double>(
          Fail(key, absl::StrFormat("is %g, outside %g .. %g", number, lowest, highest)));
    }
    return number;
  }
  bool Flag(const char* key, bool fallback) {
    const json* value = Find(key);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) Fail(key, "is neither true nor false");
    return value->is_boolean() && value->get<bool>();
  }
  int64_t Fail(const std::string& key, const std::string& what) {
    if (status_.ok()) {
      status_ = ModelError("%s: %s %s; use the config.json that belongs to the checkpoint", name_,
                           key, what);
    }
    return 0;
  }

 private:
  const json& root_;
  std::string name_;
  Status status_;
};

// rope_theta and partial_rotary_factor stand at the top (transformers 4) or in rope_parameters (5).
const json* RopeValue(const Reader& reader, const char* key) {
  if (const json* value = reader.Find(key)) return value;
  const json* nested = reader.Find("rope_parameters");
  if (nested == nullptr || !nested->is_object()) return nullptr;
  const auto found = nested->find(key);
  return found == nested->end() || found->is_null() ? nullptr : &*found;
}

void CheckRopeScaling(Reader& reader) {
  if (const json* scaling = reader.Find("rope_scaling"); scaling != nullptr && !scaling->empty()) {
    reader.Fail("rope_scaling", "is set; no GLM-4.x checkpoint has it and it is not computed here");
  }
  if (const json* nested = reader.Find("rope_parameters");
      nested != nullptr && nested->is_object()) {
    const auto type = nested->find("rope_type");
    if (type != nested->end() && *type != "default")
      reader.Fail("rope_parameters.rope_type", "is not 'default'");
  }
}

// `dimensions` are those of which partial_rotary_factor names a part; without the key transformers
// takes `whole` of them.
void ReadRope(Reader& reader, int64_t dimensions, double whole, ModelConfig* config) {
  config->rope_theta = reader.Number(RopeValue(reader, "rope_theta"), "rope_theta", 1, 1e12);
  const json* partial = RopeValue(reader, "partial_rotary_factor");
  const double factor =
      partial == nullptr ? whole : reader.Number(partial, "partial_rotary_factor", 0, 1);
  config->rotary_dim = static_cast<int64_t>(static_cast<double>(dimensions) * factor);
  if (config->rotary_dim % 2 != 0)
    reader.Fail("partial_rotary_factor", "gives an odd number of rotated dimensions");
  CheckRopeScaling(reader);
}

// glm4_moe: every group of query heads reads one head of keys and values.
void ReadGroupedAttention(Reader& reader, ModelConfig* config) {
  config->num_key_value_heads =
      reader.CountOr("num_key_value_heads", 1, 65'536, config->num_attention_heads);
  const int64_t even_heads =
      config->num_attention_heads > 0 ? config->hidden_size / config->num_attention_heads : 0;
  config->head_dim = reader.CountOr("head_dim", 1, 8'192, even_heads);
  config->attention_bias = reader.Flag("attention_bias", false);
  config->use_qk_norm = reader.Flag("use_qk_norm", false);
  ReadRope(reader, config->head_dim, 0.5, config);
  if (!reader.status().ok()) return;
  if (config->num_attention_heads % config->num_key_value_heads != 0)
    reader.Fail("num_key_value_heads", "does not divide num_attention_heads");
  if (config->head_dim < 1) reader.Fail("head_dim", "is below 1");
}

// glm4_moe_lite: all heads read one latent a token. head_dim and num_key_value_heads are not read:
// config.json, its GGUF twin and transformers give them different meanings, none of which the
// arithmetic needs.
void ReadLatentAttention(Reader& reader, ModelConfig* config) {
  if (reader.Find("q_lora_rank") == nullptr) {
    reader.Fail("q_lora_rank",
                "is missing or null; only queries through a latent (q_a_proj, q_b_proj) are "
                "computed here");
    return;
  }
  config->q_lora_rank = reader.Count("q_lora_rank", 1, 65'536);
  config->kv_lora_rank = reader.Count("kv_lora_rank", 1, 65'536);
  config->qk_nope_head_dim = reader.Count("qk_nope_head_dim", 1, 8'192);
  config->qk_rope_head_dim = reader.Count("qk_rope_head_dim", 2, 8'192);
  config->v_head_dim = reader.Count("v_head_dim", 1, 8'192);
  config->num_key_value_heads = config->num_attention_heads;
  config->head_dim = config->qk_nope_head_dim + config->qk_rope_head_dim;
  ReadRope(reader, config->qk_rope_head_dim, 1.0, config);
  if (!reader.status().ok()) return;
  // The heads are matrices of one stack, chosen like experts.
  if (config->num_attention_heads > kMaxExperts)
    reader.Fail("num_attention_heads", absl::StrFormat("is above %d", kMaxExperts));
  if (config->rotary_dim != config->qk_rope_head_dim) {
    reader.Fail("partial_rotary_factor", "and qk_rope_head_dim leave rotated dimensions unrotated");
  }
  if (const json* whole = reader.Find("qk_head_dim");
      whole != nullptr && *whole != config->head_dim)
    reader.Fail("qk_head_dim", "is not qk_nope_head_dim + qk_rope_head_dim");
  if (reader.Flag("attention_bias", false))
    reader.Fail("attention_bias", "is set; glm4_moe_lite's projections have no bias here");
  if (!reader.Flag("rope_interleave", true))
    reader.Fail("rope_interleave", "is false; glm4_moe_lite rotates neighbouring dimensions");
}

void ReadEos(Reader& reader, ModelConfig* config) {
  const json* value = reader.Find("eos_token_id");
  if (value == nullptr) return;
  const json list = value->is_array() ? *value : json::array({*value});
  for (const json& id : list) {
    if (!id.is_number_integer() || id.get<int64_t>() < 0 ||
        id.get<int64_t>() >= config->vocab_size) {
      reader.Fail("eos_token_id", "is not an id (or list of ids) below vocab_size");
      return;
    }
    config->eos_token_ids.push_back(id.get<int32_t>());
  }
}

// Which layers are dense is said by first_k_dense_replace, or by a list that names every layer.
void ReadDenseLayers(Reader& reader, ModelConfig* config) {
  const int64_t layers = config->num_hidden_layers;
  const json* types = reader.Find("mlp_layer_types");
  const json* first = reader.Find("first_k_dense_replace");
  config->first_k_dense_replace =
      reader.CountOr("first_k_dense_replace", 0, layers, std::min<int64_t>(1, layers));
  if (types == nullptr || !reader.status().ok()) return;
  if (!types->is_array() || static_cast<int64_t>(types->size()) < layers) {
    reader.Fail("mlp_layer_types", absl::StrFormat("is not a list of %d layers", layers));
    return;
  }
  int64_t dense = 0;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const json& type = (*types)[static_cast<size_t>(layer)];
    if (type != "dense" && type != "sparse") {
      reader.Fail("mlp_layer_types", "holds something else than 'dense' and 'sparse'");
    } else if (type == "dense" && dense++ != layer) {
      reader.Fail("mlp_layer_types", "has a dense layer behind a sparse one");
    }
  }
  if (first != nullptr && dense != config->first_k_dense_replace)
    reader.Fail("mlp_layer_types", "and first_k_dense_replace name other layers dense");
  config->first_k_dense_replace = dense;
}

void ReadMixture(Reader& reader, ModelConfig* config) {
  ReadDenseLayers(reader, config);
  config->moe_intermediate_size = reader.Count("moe_intermediate_size", 1, kMaxDimension);
  config->n_routed_experts = reader.Count("n_routed_experts", 1, kMaxExperts);
  config->n_shared_experts = reader.CountOr("n_shared_experts", 0, 64, 1);
  config->num_experts_per_tok = reader.Count("num_experts_per_tok", 1, kMaxExperts);
  config->n_group = reader.CountOr("n_group", 1, kMaxExperts, 1);
  config->topk_group = reader.CountOr("topk_group", 1, kMaxExperts, 1);
  config->norm_topk_prob = reader.Flag("norm_topk_prob", true);
  const json* scale = reader.Find("routed_scaling_factor");
  // Transformers' defaults.
  const double missing = config->has_latent_attention() ? 1.8 : 1.0;
  config->routed_scaling_factor =
      scale == nullptr ? missing : reader.Number(scale, "routed_scaling_factor", 1e-6, 1e6);
  // Implied where they are missing; both architectures know no other router.
  if (const json* function = reader.Find("scoring_func");
      function != nullptr && *function != "sigmoid")
    reader.Fail("scoring_func", "is not 'sigmoid'");
  if (const json* method = reader.Find("topk_method"); method != nullptr && *method != "noaux_tc")
    reader.Fail("topk_method", "is not 'noaux_tc'");
  if (!reader.status().ok()) return;
  if (config->n_routed_experts % config->n_group != 0)
    reader.Fail("n_group", "does not divide n_routed_experts");
  if (config->topk_group > config->n_group) reader.Fail("topk_group", "is above n_group");
  const int64_t eligible = config->n_routed_experts / config->n_group * config->topk_group;
  if (config->num_experts_per_tok > eligible) {
    reader.Fail("num_experts_per_tok",
                absl::StrFormat("is above the %d experts that can be chosen", eligible));
  }
}

Status CheckArchitecture(const json& root, const std::string& name) {
  const auto type = root.find("model_type");
  if (type == root.end() || !type->is_string()) {
    return ModelError(
        "%s: model_type is missing; use the config.json that belongs to the checkpoint", name);
  }
  if (*type != "glm4_moe" && *type != "glm4_moe_lite") {
    return ModelError(
        "%s: model_type '%s' is not supported; this build computes glm4_moe (GLM-4.5, 4.5-Air, "
        "4.6, 4.7) and glm4_moe_lite (GLM-4.7-Flash)",
        name, type->get<std::string>());
  }
  const auto activation = root.find("hidden_act");
  if (activation != root.end() && *activation != "silu")
    return ModelError("%s: hidden_act is not 'silu'", name);
  return OkStatus();
}

}  // namespace

StatusOr<ModelConfig> ParseModelConfig(const std::string& text, const std::string& name) {
  const json root = ParseBoundedJson(text);
  if (!root.is_object())
    return ModelError("%s: not a JSON object, or an endless one; fetch it again", name);
  LOCKSTEP_RETURN_IF_ERROR(CheckArchitecture(root, name));
  Reader reader(root, name);
  ModelConfig config;
  config.model_type = root["model_type"].get<std::string>();
  config.hidden_size = reader.Count("hidden_size", 1, kMaxDimension);
  config.num_hidden_layers = reader.Count("num_hidden_layers", 1, 10'000);
  config.num_nextn_predict_layers = reader.CountOr("num_nextn_predict_layers", 0, 16, 0);
  config.num_attention_heads = reader.Count("num_attention_heads", 1, 65'536);
  config.intermediate_size = reader.Count("intermediate_size", 1, kMaxDimension);
  config.rms_norm_eps = reader.Number(reader.Find("rms_norm_eps"), "rms_norm_eps", 0, 1);
  config.vocab_size = reader.Count("vocab_size", 1, kMaxDimension);
  config.max_position_embeddings = reader.Count("max_position_embeddings", 1, kMaxDimension);
  config.tie_word_embeddings = reader.Flag("tie_word_embeddings", false);
  if (config.model_type == "glm4_moe_lite") {
    ReadLatentAttention(reader, &config);
  } else {
    ReadGroupedAttention(reader, &config);
  }
  ReadMixture(reader, &config);
  ReadEos(reader, &config);
  LOCKSTEP_RETURN_IF_ERROR(reader.status());
  // A thousand times the largest model there is; below it no size in bytes overflows.
  const double layer_parameters =
      static_cast<double>(config.hidden_size) *
      (3.0 * static_cast<double>(config.n_routed_experts + config.n_shared_experts) *
           static_cast<double>(config.moe_intermediate_size) +
       3.0 * static_cast<double>(config.intermediate_size) +
       4.0 * static_cast<double>(config.num_attention_heads *
                                 (config.head_dim + config.v_head_dim + config.latent_width())));
  if (layer_parameters * static_cast<double>(config.num_hidden_layers) > 1e15) {
    reader.Fail("num_hidden_layers", "and the other sizes mean more than 10^15 parameters");
  }
  LOCKSTEP_RETURN_IF_ERROR(reader.status());
  return config;
}

}  // namespace lockstep
