// What one rank holds of a glm4_moe model.
#pragma once

#include <vector>

#include "runtime/model/config.h"
#include "runtime/weights/partition.h"

namespace lockstep {

// The cuts of every rank; index [rank].
struct Cuts {
  std::vector<Range> query_heads;
  std::vector<Range> dense_columns;   // of intermediate_size
  std::vector<Range> expert_columns;  // of moe_intermediate_size
  std::vector<Range> shared_columns;  // of n_shared_experts * moe_intermediate_size
  std::vector<Range> vocab;
};

Cuts CutModel(const ModelConfig& config, const std::vector<double>& shares);

// One rank's sizes, in the words of the forward pass.
struct LocalShape {
  Range query_heads, kv_heads, dense_columns, expert_columns, shared_columns, vocab;
  int64_t qkv_width = 0;        // (queries + keys + values) * head_dim
  int64_t attention_width = 0;  // queries * head_dim
};

LocalShape ShapeOf(const ModelConfig& config, const Cuts& cuts, int rank);

}  // namespace lockstep
