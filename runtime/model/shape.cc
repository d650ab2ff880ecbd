#include "runtime/model/shape.h"

namespace lockstep {

Cuts CutModel(const ModelConfig& config, const std::vector<double>& shares) {
  return Cuts{CutByShares(config.num_attention_heads, shares),
              CutByShares(config.intermediate_size, shares),
              CutByShares(config.moe_intermediate_size, shares),
              CutByShares(config.n_shared_experts * config.moe_intermediate_size, shares),
              CutByShares(config.vocab_size, shares)};
}

LocalShape ShapeOf(const ModelConfig& config, const Cuts& cuts, int rank) {
  const auto r = static_cast<size_t>(rank);
  LocalShape shape;
  shape.query_heads = cuts.query_heads[r];
  shape.kv_heads = KvHeadsOf(shape.query_heads, config.query_heads_per_kv_head());
  shape.dense_columns = cuts.dense_columns[r];
  shape.expert_columns = cuts.expert_columns[r];
  shape.shared_columns = cuts.shared_columns[r];
  shape.vocab = cuts.vocab[r];
  shape.attention_width = shape.query_heads.size() * config.head_dim;
  shape.qkv_width = shape.attention_width + 2 * shape.kv_heads.size() * config.head_dim;
  return shape;
}

}  // namespace lockstep
