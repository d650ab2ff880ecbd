#include "runtime/model/shape.h"

#include <algorithm>
#include <string>
#include <string_view>

namespace lockstep {

CutUnits CutUnitsOf(const Checkpoint& checkpoint) {
  constexpr std::string_view kDown = ".down_proj.weight";
  CutUnits units;
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (name.size() < kDown.size() || name.substr(name.size() - kDown.size()) != kDown) continue;
    int64_t* unit = name.find(".shared_experts.") != std::string::npos ? &units.shared
                    : name.find(".experts.") != std::string::npos      ? &units.expert
                                                                       : &units.dense;
    *unit = std::max(*unit, info.format.cut_weights());
  }
  return units;
}

Cuts CutModel(const ModelConfig& config, const std::vector<double>& shares, const CutUnits& units) {
  return Cuts{
      CutByShares(config.num_attention_heads, shares),
      CutByShares(config.intermediate_size, shares, units.dense),
      CutByShares(config.moe_intermediate_size, shares, units.expert),
      CutByShares(config.n_shared_experts * config.moe_intermediate_size, shares, units.shared),
      CutByShares(config.vocab_size, shares),
      {},
      Range{0, config.num_hidden_layers}};
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
  shape.layers = cuts.layers;
  shape.has_draft_layer = !cuts.draft_rows.empty();
  if (shape.has_draft_layer) shape.draft_rows = cuts.draft_rows[r];
  if (config.has_latent_attention()) {
    shape.kv_heads = {};
    shape.qkv_width = shape.query_heads.size() * config.head_dim;
    shape.attention_width = shape.query_heads.size() * config.v_head_dim;
    return shape;
  }
  shape.attention_width = shape.query_heads.size() * config.head_dim;
  shape.qkv_width = shape.attention_width + 2 * shape.kv_heads.size() * config.head_dim;
  return shape;
}

int64_t CacheBytesPerToken(const ModelConfig& config, const LocalShape& shape,
                           kernels::CacheType type) {
  if (!config.has_latent_attention())
    return 2 * shape.kv_heads.size() * kernels::CacheRowBytes(type, config.head_dim);
  // Every rank keeps the latents whole.
  return kernels::CacheRowBytes(type, config.kv_lora_rank) +
         kernels::CacheRowBytes(type, config.qk_rope_head_dim);
}

}  // namespace lockstep
