#include "runtime/model/scratch.h"

#include <algorithm>

#include "runtime/model/weights.h"

namespace lockstep {

Scratch TakeScratch(const ModelConfig& config, const LocalShape& shape, const ModelLimits& limits,
                    int threads, Arena* arena) {
  const int64_t rows = limits.max_rows;
  const int64_t hidden = config.hidden_size;
  const int64_t slots = rows * config.num_experts_per_tok;
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
  scratch.score_stride = (limits.max_model_len + 15) / 16 * 16;
  scratch.scores =
      arena->Take<float>(threads * config.query_heads_per_kv_head() * scratch.score_stride);
  scratch.gate_up = arena->Take<float>(rows * 2 * columns);
  scratch.activated = arena->Take<float>(rows * columns);
  scratch.shared_out = arena->Take<float>(rows * hidden);
  scratch.router_logits = arena->Take<float>(rows * config.n_routed_experts);
  scratch.chosen = arena->Take<int32_t>(slots);
  scratch.expert_weights = arena->Take<float>(slots);
  scratch.groups.groups = arena->Take<kernels::RowGroup>(config.n_routed_experts);
  scratch.groups.group_count = arena->Take<int32_t>(1);
  scratch.groups.row_of = arena->Take<int32_t>(slots);
  scratch.groups.assignment_of = arena->Take<int32_t>(slots);
  scratch.expert_gate_up = arena->Take<float>(slots * 2 * shape.expert_columns.size());
  scratch.expert_activated = arena->Take<float>(slots * shape.expert_columns.size());
  scratch.expert_out = arena->Take<float>(slots * hidden);
  scratch.final_hidden = arena->Take<float>(limits.max_outputs * hidden);
  scratch.logits = arena->Take<float>(limits.max_outputs * shape.vocab.size());
  return scratch;
}

MemoryPlan PlanMemory(const ModelConfig& config, const ModelLimits& limits,
                      const std::vector<double>& shares, int rank, uint64_t element_bytes,
                      int threads) {
  const LocalShape shape = ShapeOf(config, CutModel(config, shares), rank);
  Arena arena = Arena::Measuring();
  TakeScratch(config, shape, limits, threads, &arena);
  MemoryPlan plan;
  plan.weight_bytes = WeightBytes(config, shape, element_bytes);
  plan.kv_bytes = static_cast<uint64_t>(config.num_hidden_layers * 2 * limits.kv_blocks *
                                        shape.kv_heads.size() * kBlockTokens * config.head_dim) *
                  sizeof(float);
  plan.scratch_bytes = arena.used_bytes();
  return plan;
}

}  // namespace lockstep
