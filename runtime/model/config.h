// The architecture of a checkpoint, read from its config.json and checked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

// glm4_moe (GLM-4.5, 4.5-Air, 4.6, 4.7) and glm4_moe_lite (GLM-4.7-Flash), whose attention reads a
// latent (MLA) in place of keys and values. Field names follow config.json.
struct ModelConfig {
  std::string model_type;
  int64_t hidden_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_nextn_predict_layers = 0;  // MTP layers after the last one
  int64_t first_k_dense_replace = 0;     // the first layers have a dense feed-forward
  int64_t num_attention_heads = 0;
  int64_t num_key_value_heads = 0;  // glm4_moe_lite: one for each query head
  int64_t head_dim = 0;             // of queries and keys
  int64_t rotary_dim = 0;           // dimensions of a head that RoPE turns
  double rope_theta = 0;
  bool attention_bias = false;
  bool use_qk_norm = false;
  // glm4_moe_lite only, 0 otherwise. A head's query has qk_nope_head_dim plain dimensions, then
  // qk_rope_head_dim rotated ones; a token's cache is its latent and one rotated key for all heads.
  int64_t q_lora_rank = 0;
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
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
  bool has_latent_attention() const { return kv_lora_rank > 0; }
  // Values that one token keeps for all heads of a layer, if attention is latent.
  int64_t latent_width() const { return kv_lora_rank + qk_rope_head_dim; }
  bool is_dense(int64_t layer) const { return layer < first_k_dense_replace; }
};

// Parses the text of a config.json; `name` is its path, for errors. Refuses unknown architectures,
// missing keys, values that contradict each other, and anything that would make a size overflow.
StatusOr<ModelConfig> ParseModelConfig(const std::string& text, const std::string& name);

}  // namespace lockstep
