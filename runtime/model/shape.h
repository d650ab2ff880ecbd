// What one rank holds of a model.
#pragma once

#include <vector>

#include "runtime/kernels/cache_row.h"
#include "runtime/model/config.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/partition.h"

namespace lockstep {

// The cuts of every rank; index [rank].
struct Cuts {
  std::vector<Range> query_heads;
  std::vector<Range> dense_columns;   // of intermediate_size
  std::vector<Range> expert_columns;  // of moe_intermediate_size
  std::vector<Range> shared_columns;  // of n_shared_experts * moe_intermediate_size
  std::vector<Range> vocab;
  std::vector<Range> draft_rows;  // of hidden_size, eh_proj's outputs; empty: no draft layer
  Range layers;  // which layers these ranks hold, all alike: a stage of a pipeline not all of them
};

// Between how many feed-forward columns a cut may fall: quantized down_proj's are cut between
// blocks of 32 weights, so that no block is taken apart.
struct CutUnits {
  int64_t dense = 1;
  int64_t expert = 1;
  int64_t shared = 1;
};

// The units that the checkpoint's formats ask for.
CutUnits CutUnitsOf(const Checkpoint& checkpoint);

Cuts CutModel(const ModelConfig& config, const std::vector<double>& shares,
              const CutUnits& units = {});

// One rank's sizes, in the words of the forward pass.
struct LocalShape {
  Range query_heads, kv_heads, dense_columns, expert_columns, shared_columns, vocab;
  Range layers;  // the first one's predecessors and the last one's successors are on other ranks
  int64_t qkv_width = 0;        // of all heads' queries, keys and values; latent: queries alone
  int64_t attention_width = 0;  // of all heads' results
  bool has_draft_layer = false;
  Range draft_rows;
};

LocalShape ShapeOf(const ModelConfig& config, const Cuts& cuts, int rank);

// Bytes that a token keeps in one layer's cache.
int64_t CacheBytesPerToken(const ModelConfig& config, const LocalShape& shape,
                           kernels::CacheType type);

}  // namespace lockstep
