#include "runtime/model/scratch.h"

#include <algorithm>

namespace lockstep {

namespace {

LatentScratch TakeLatent(const ModelConfig& config, const LocalShape& shape, int64_t rows,
                         Arena* arena) {
  const int64_t heads = shape.query_heads.size();
  LatentScratch scratch;
  scratch.query_latents = arena->Take<float>(rows * config.q_lora_rank);
  scratch.latents = arena->Take<float>(rows * config.latent_width());
  scratch.plain_queries = arena->Take<float>(heads * rows * config.qk_nope_head_dim);
  scratch.rotated_queries = arena->Take<float>(heads * rows * config.qk_rope_head_dim);
  scratch.absorbed_queries = arena->Take<float>(heads * rows * config.kv_lora_rank);
  scratch.attended_latents = arena->Take<float>(heads * rows * config.kv_lora_rank);
  scratch.head_values = arena->Take<float>(heads * rows * config.v_head_dim);
  for (kernels::ExpertGroups& groups : scratch.heads) {
    groups.groups = arena->Take<kernels::RowGroup>(heads);
    groups.group_count = arena->Take<int32_t>(1);
  }
  return scratch;
}

}  // namespace

Scratch TakeScratch(const ModelConfig& config, const LocalShape& shape, const ModelLimits& limits,
                    int threads, Arena* arena) {
  const int64_t rows = limits.max_rows;
  const int64_t hidden = config.hidden_size;
  const int64_t slots = rows * config.num_experts_per_tok;
  const int64_t layers = shape.layers.size() + (shape.has_draft_layer ? 1 : 0);
  const int64_t columns = std::max(shape.dense_columns.size(), shape.shared_columns.size());
  Scratch scratch;
  scratch.residual = arena->Take<float>(rows * hidden);
  scratch.normed = arena->Take<float>(rows * hidden);
  scratch.sum = arena->Take<float>(rows * hidden);
  scratch.qkv = arena->Take<float>(rows * shape.qkv_width);
  scratch.attended = arena->Take<float>(rows * shape.attention_width);
  scratch.cosines = arena->Take<float>(rows * config.rotary_dim / 2);
  scratch.sines = arena->Take<float>(rows * config.rotary_dim / 2);
  scratch.tables = arena->Take<const int32_t*>(rows);
  const bool latent = config.has_latent_attention();
  const kernels::AttentionScratch attention{
      rows, shape.query_heads.size(),
      latent ? kernels::LatentHeads(rows, threads) : config.query_heads_per_kv_head(),
      latent ? config.kv_lora_rank : config.head_dim, threads};
  scratch.attention = arena->Take<float>(attention.floats());
  if (latent) scratch.latent = TakeLatent(config, shape, rows, arena);
  if (shape.has_draft_layer) {
    scratch.draft.hidden = arena->Take<float>(rows * hidden);
    scratch.draft.joined = arena->Take<float>(rows * 2 * hidden);
  }
  scratch.gate_up = arena->Take<float>(rows * 2 * columns);
  scratch.activated = arena->Take<float>(rows * columns);
  scratch.shared_out = arena->Take<float>(rows * hidden);
  scratch.router_logits = arena->Take<float>(rows * config.n_routed_experts);
  scratch.chosen = arena->Take<int32_t>(layers * slots);
  scratch.expert_weights = arena->Take<float>(slots);
  scratch.groups.groups = arena->Take<kernels::RowGroup>(config.n_routed_experts);
  scratch.group_counts = arena->Take<int32_t>(layers * 2);
  scratch.groups.row_of = arena->Take<int32_t>(slots);
  scratch.groups.assignment_of = arena->Take<int32_t>(slots);
  scratch.expert_gate_up = arena->Take<float>(slots * 2 * shape.expert_columns.size());
  scratch.expert_activated = arena->Take<float>(slots * shape.expert_columns.size());
  scratch.expert_out = arena->Take<float>(slots * hidden);
  scratch.final_hidden = arena->Take<float>(limits.max_outputs * hidden);
  scratch.logits = arena->Take<float>(limits.max_outputs * shape.vocab.size());
  return scratch;
}

MemoryPlan PlanMemory(const ModelConfig& config, const SlicePlan& slice, const ModelLimits& limits,
                      int rank, int threads) {
  const LocalShape shape = ShapeOf(config, slice.cuts, rank);
  Arena arena = Arena::Measuring();
  TakeScratch(config, shape, limits, threads, &arena);
  MemoryPlan plan;
  plan.weight_bytes = slice.weight_bytes;
  const int64_t layers = shape.layers.size() + (shape.has_draft_layer ? 1 : 0);
  plan.kv_bytes = static_cast<uint64_t>(layers * limits.kv_blocks * kBlockTokens *
                                        CacheBytesPerToken(config, shape, limits.cache_type));
  plan.scratch_bytes = arena.used_bytes();
  plan.work_bytes = slice.work_bytes;
  plan.staging_bytes = slice.staging_bytes;
  plan.exchange_bytes = limits.exchange_bytes;
  return plan;
}

}  // namespace lockstep
