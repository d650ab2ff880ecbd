// The architecture of a checkpoint, read from its config.json and checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

// glm4_moe (GLM-4.5, 4.5-Air, 4.6, 4.7). Field names follow config.json.
struct ModelConfig {
  std::string model_type;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_nextn_predict_layers = 0;  // MTP layers after the last one
  int64_t first_k_dense_replace = 0;     // the first layers have a dense feed-forward
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;  // leading dimensions of a head that RoPE turns
  double rope_theta = 0;
  bool attention_bias = false;
  bool use_qk_norm = false;
  int64_t intermediate_size = 0;
  int64_t moe_intermediate_size = 0;
  int64_t n_routed_experts = 0;
  int64_t n_shared_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t n_group = 1;
  int64_t topk_group = 1;
  bool norm_topk_prob = true;
  double routed_scaling_factor = 1;
  double rms_norm_eps = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  bool tie_word_embeddings = false;
  std::vector<int32_t> eos_token_ids;

  int64_t query_heads_per_kv_head() const { return num_attention_heads / num_key_value_heads; }
  bool is_dense(int64_t layer) const { return layer < first_k_dense_replace; }
};

// Parses the text of a config.json; `name` is its path, for errors. Refuses unknown architectures,
// missing keys, values that contradict each other, and anything that would make a size overflow.
StatusOr<ModelConfig> ParseModelConfig(const std::string& text, const std::string& name);
StatusOr<ModelConfig> ReadModelConfig(const std::string& directory);

}  // namespace lockstep
