// The packed weights of one rank's slice.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "runtime/model/config.h"
#include "runtime/model/fused_matrix.h"
#include "runtime/model/shape.h"
#include "runtime/model/weight_reader.h"

namespace lockstep {

// down(silu(gate x) * up x), sliced by columns of the inner dimension.
struct FeedForward {
  FusedMatrix gate_up;     // [2 * columns, hidden]: gate rows, then up rows; for experts a stack of
                           // n_routed_experts
  PackedPtr down;          // [hidden, columns]
  uint64_t bytes() const;  // of the packed matrices
};

struct Mixture {
  PackedPtr router;               // [experts, hidden], whole on every rank
  std::vector<float> correction;  // [experts]
  FeedForward experts;
  std::optional<FeedForward> shared;
};

// glm4_moe_lite's attention but for o_proj. What all heads share is whole on every rank. Letters as
// in glm4_moe_lite.cc.
struct LatentAttention {
  PackedPtr query_down;            // [Q, hidden], q_a_proj
  std::vector<float> query_norm;   // [Q]
  PackedPtr query_up;              // [heads * (n + r), Q], q_b_proj
  PackedPtr latent_down;           // [L + r, hidden], kv_a_proj_with_mqa
  std::vector<float> latent_norm;  // [L]
  PackedPtr key_absorb;            // heads x [L, n], the transposed key rows of kv_b_proj
  PackedPtr value_up;              // heads x [v, L], its value rows
};

struct Layer {
  std::vector<float> input_norm;           // [hidden]
  std::vector<float> post_attention_norm;  // [hidden]
  FusedMatrix qkv;                         // [qkv_width, hidden]: query, key, value rows
  std::vector<float> qkv_bias;             // [qkv_width], empty without attention_bias
  std::vector<float> query_norm;           // [head_dim], empty without use_qk_norm
  std::vector<float> key_norm;
  std::optional<LatentAttention> latent;  // in place of the four above
  PackedPtr output;                       // [hidden, attention_width]
  std::optional<FeedForward> dense;       // exactly one of the two
  std::optional<Mixture> mixture;
};

// The multi-token-prediction layer that stands behind the last one. Names in checkpoints: enorm,
// hnorm, eh_proj, shared_head.norm, embed_tokens, shared_head.head.
struct DraftLayer {
  std::vector<float> embedding_norm;  // [hidden]
  std::vector<float> hidden_norm;     // [hidden]
  PackedPtr join;                     // [draft rows, 2 * hidden]
  Layer layer;
  std::vector<float> final_norm;  // [hidden]
  PackedPtr embedding;            // nullptr: the main one, as in head
  PackedPtr head;
};

struct Weights {
  PackedPtr embedding;  // [vocab slice, hidden]; nullptr where the model does not begin
  std::vector<Layer> layers;
  // What follows the last of them: the model's final norm, or the input norm of the layer with
  // which the next stage goes on.
  std::vector<float> final_norm;
  PackedPtr head;  // [vocab slice, hidden]; nullptr where the model does not end
  std::optional<DraftLayer> draft;
  uint64_t bytes = 0;            // in memory
  uint64_t bytes_per_token = 0;  // read for one decoded token, without the draft layer
};

// Reads and packs the slice (collective over the reader's group), or counts it. With the draft
// layer, if `cuts` cut it.
StatusOr<Weights> LoadWeights(const ModelConfig& config, const Cuts& cuts, WeightReader& reader);

// Its pieces, for whoever takes them one by one (layer_walk.h).
StatusOr<PackedPtr> LoadEmbedding(WeightReader& reader, const ModelConfig& config,
                                  const Cuts& cuts);
StatusOr<PackedPtr> LoadHead(WeightReader& reader, const ModelConfig& config, const Cuts& cuts);
StatusOr<std::vector<float>> LoadFinalNorm(WeightReader& reader, const ModelConfig& config);
// Layer::input_norm of layer `index` alone.
StatusOr<std::vector<float>> LoadInputNorm(WeightReader& reader, const ModelConfig& config,
                                           int64_t index);
// All matrices of a layer, each not nullptr.
std::vector<PackedPtr*> MatricesOf(Layer& layer);

// The pieces of those, for every architecture that has them. `prefix` ends with a dot
// ("model.layers.3.mlp.")
StatusOr<Layer> LoadLayer(WeightReader& reader, const ModelConfig& config, const Cuts& cuts,
                          int64_t index);
StatusOr<FeedForward> LoadFeedForward(WeightReader& reader, const std::string& prefix,
                                      int64_t hidden, int64_t inner,
                                      const std::vector<Range>& columns);
StatusOr<Mixture> LoadMixture(WeightReader& reader, const ModelConfig& config, const Cuts& cuts,
                              const std::string& prefix);

// load_lite.cc: fills latent and output.
Status LoadLatentAttention(WeightReader& reader, const ModelConfig& config, const Cuts& cuts,
                           const std::string& prefix, Layer* layer);

// load_mtp.cc. Whether the checkpoint has the layer.
bool HasDraftLayer(const ModelConfig& config, const Checkpoint& checkpoint);
// A checkpoint without the layer, or with a part of it, is an error.
StatusOr<DraftLayer> LoadDraftLayer(WeightReader& reader, const ModelConfig& config,
                                    const Cuts& cuts);

// Every tensor has its place in the forward pass, but for those of MTP layers and for the
// frequencies that old checkpoints carry: a bias that config.json does not announce would silently
// change the text.
Status CheckUnused(const ModelConfig& config, const std::vector<std::string>& unused);

}  // namespace lockstep
