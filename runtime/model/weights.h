// The packed weights of one rank's slice of a glm4_moe model.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "runtime/kernels/backend.h"
#include "runtime/model/config.h"
#include "runtime/model/shape.h"
#include "runtime/weights/slice_loader.h"

namespace lockstep {

using PackedPtr = std::unique_ptr<kernels::PackedMatrix>;

// down(silu(gate x) * up x), sliced by columns of the inner dimension.
struct FeedForward {
  PackedPtr gate_up;  // [2 * columns, hidden]: gate rows, then up rows; for experts a stack of
                      // n_routed_experts
  PackedPtr down;     // [hidden, columns]
};

struct Mixture {
  PackedPtr router;               // [experts, hidden], whole on every rank
  std::vector<float> correction;  // [experts]
  FeedForward experts;
  std::optional<FeedForward> shared;
};

struct Layer {
  std::vector<float> input_norm;           // [hidden]
  std::vector<float> post_attention_norm;  // [hidden]
  PackedPtr qkv;                           // [qkv_width, hidden]: query, key, value rows
  std::vector<float> qkv_bias;             // [qkv_width], empty without attention_bias
  std::vector<float> query_norm;           // [head_dim], empty without use_qk_norm
  std::vector<float> key_norm;
  PackedPtr output;                  // [hidden, attention_width]
  std::optional<FeedForward> dense;  // exactly one of the two
  std::optional<Mixture> mixture;
};

struct Weights {
  PackedPtr embedding;  // [vocab slice, hidden]
  std::vector<Layer> layers;
  std::vector<float> final_norm;
  PackedPtr head;                // [vocab slice, hidden]
  uint64_t bytes = 0;            // in memory
  uint64_t bytes_per_token = 0;  // read for one decoded token
};

// Reads and packs the slice. Collective over the loader's group.
StatusOr<Weights> LoadWeights(const ModelConfig& config, const Cuts& cuts, SliceLoader& loader,
                              const kernels::Backend& backend);

// Bytes of tensors that `rank` reads and keeps when weights have `element_bytes`.
uint64_t WeightBytes(const ModelConfig& config, const LocalShape& shape, uint64_t element_bytes);

}  // namespace lockstep
