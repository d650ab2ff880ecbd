#include "runtime/planner/model_bytes.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/model/tensor_groups.h"
#include "runtime/model/weight_reader.h"
#include "runtime/model/weights.h"

namespace lockstep::planner {
namespace {

// Layers with equal text hold the same: every tensor's name behind the layer's number, its shape
// and its format.
std::vector<std::string> LayerTexts(const ModelConfig& config, const Checkpoint& checkpoint) {
  std::vector<std::string> texts(static_cast<size_t>(config.num_hidden_layers));
  for (const auto& [name, info] : checkpoint.tensors()) {
    const int64_t layer = LayerOf(name).value_or(-1);
    if (layer < 0 || layer >= config.num_hidden_layers) continue;
    const size_t rest = name.find('.', sizeof(kLayerPrefix) - 1);
    std::string& text = texts[static_cast<size_t>(layer)];
    absl::StrAppend(&text, name.substr(rest), info.ShapeText(), info.format.Name(), "\n");
  }
  return texts;
}

// A layer's bytes and those that one row reads of them tell its experts': all else is read whole.
StatusOr<LayerBytes> CountLayer(const ModelConfig& config, const Checkpoint& checkpoint,
                                const Cuts& cuts, int rank, int64_t index) {
  const double unread = 1 - static_cast<double>(config.num_experts_per_tok) /
                                static_cast<double>(config.n_routed_experts);
  WeightReader reader(checkpoint, rank);
  LOCKSTEP_RETURN_IF_ERROR(LoadLayer(reader, config, cuts, index).status());
  const auto skipped = static_cast<double>(reader.bytes() - reader.bytes_per_token());
  LayerBytes layer;
  if (unread > 0)
    layer.experts = std::min(reader.bytes(), static_cast<uint64_t>(std::llround(skipped / unread)));
  layer.always = reader.bytes() - layer.experts;
  return layer;
}

// Its copies of embedding and head equal the model's, and are not held twice.
StatusOr<LayerBytes> CountDraft(const ModelConfig& config, const Checkpoint& checkpoint,
                                const Cuts& cuts, int rank, const LayerBytes& last) {
  constexpr uint64_t kBf16Bytes = 2;
  LayerBytes draft = last;
  const auto hidden = static_cast<uint64_t>(config.hidden_size);
  uint64_t join = 2 * hidden * hidden * kBf16Bytes;
  if (HasDraftLayer(config, checkpoint)) {
    LOCKSTEP_ASSIGN_OR_RETURN(draft,
                              CountLayer(config, checkpoint, cuts, rank, config.num_hidden_layers));
    const std::string name =
        absl::StrCat(kLayerPrefix, config.num_hidden_layers, ".eh_proj.weight");
    join = checkpoint.Find(name)->stored_bytes();
  }
  // Ranks divide its rows, as finely as the vocabulary's.
  const Range& rows = cuts.vocab[static_cast<size_t>(rank)];
  draft.always +=
      static_cast<uint64_t>(static_cast<double>(join) * static_cast<double>(rows.size()) /
                            static_cast<double>(config.vocab_size));
  return draft;
}

}  // namespace

std::vector<int64_t> FirstOfKind(const ModelConfig& config, const Checkpoint& checkpoint) {
  std::map<std::string, int64_t> known;
  std::vector<int64_t> kinds;
  for (std::string& text : LayerTexts(config, checkpoint)) {
    const auto index = static_cast<int64_t>(kinds.size());
    kinds.push_back(known.try_emplace(std::move(text), index).first->second);
  }
  return kinds;
}

uint64_t RankBytes::weights() const {
  uint64_t sum = embedding + head;
  for (const LayerBytes& layer : layers) sum += layer.always + layer.experts;
  return sum;
}

StatusOr<RankBytes> CountBytes(const ModelConfig& config, const Checkpoint& checkpoint,
                               const Cuts& cuts, int rank, const std::vector<int64_t>& kinds) {
  RankBytes counted;
  WeightReader reader(checkpoint, rank);
  LOCKSTEP_RETURN_IF_ERROR(LoadEmbedding(reader, config, cuts).status());
  counted.embedding = reader.bytes();
  LOCKSTEP_RETURN_IF_ERROR(LoadFinalNorm(reader, config).status());
  LOCKSTEP_RETURN_IF_ERROR(LoadHead(reader, config, cuts).status());
  counted.head = reader.bytes() - counted.embedding;
  for (const int64_t first : kinds) {
    const size_t index = counted.layers.size();
    if (static_cast<size_t>(first) < index) {
      counted.layers.push_back(counted.layers[static_cast<size_t>(first)]);
      continue;
    }
    LOCKSTEP_ASSIGN_OR_RETURN(counted.layers.emplace_back(),
                              CountLayer(config, checkpoint, cuts, rank, first));
  }
  if (counted.layers.empty()) return counted;
  LOCKSTEP_ASSIGN_OR_RETURN(counted.draft,
                            CountDraft(config, checkpoint, cuts, rank, counted.layers.back()));
  return counted;
}

RowWork WorkOf(const ModelConfig& config) {
  const auto layers = static_cast<double>(config.num_hidden_layers);
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto heads = static_cast<double>(config.num_attention_heads);
  RowWork work;
  double attention = 0;
  if (config.has_latent_attention()) {
    const auto query = static_cast<double>(config.q_lora_rank);
    const auto latent = static_cast<double>(config.kv_lora_rank);
    const auto width = static_cast<double>(config.latent_width());
    attention = hidden * (query + width) + query * heads * static_cast<double>(config.head_dim) +
                heads * latent * static_cast<double>(config.qk_nope_head_dim + config.v_head_dim) +
                hidden * heads * static_cast<double>(config.v_head_dim);
    work.attention_per_position = 2 * layers * heads * (width + latent);
  } else {
    const auto dim = static_cast<double>(config.head_dim);
    attention = 2 * hidden * dim * (heads + static_cast<double>(config.num_key_value_heads));
    work.attention_per_position = 4 * layers * heads * dim;
  }
  const auto dense = static_cast<double>(config.first_k_dense_replace);
  const auto experts = static_cast<double>(config.num_experts_per_tok + config.n_shared_experts);
  const double mixture = hidden * (3 * experts * static_cast<double>(config.moe_intermediate_size) +
                                   static_cast<double>(config.n_routed_experts));
  work.layer_parameters = layers * attention +
                          dense * 3 * hidden * static_cast<double>(config.intermediate_size) +
                          (layers - dense) * mixture;
  work.head_parameters = hidden * static_cast<double>(config.vocab_size);
  return work;
}

uint64_t FileBytes(const Checkpoint& checkpoint) {
  uint64_t bytes = 0;
  for (const auto& [name, info] : checkpoint.tensors()) bytes += info.stored_bytes();
  return bytes;
}

double DistinctExperts(double experts, double chosen, double rows) {
  if (experts <= 0) return 0;
  // Up to one row exactly as many as it chooses, so that two half rows are one.
  if (rows <= 1) return chosen * rows;
  return experts * (1 - std::pow(1 - std::min(1.0, chosen / experts), rows));
}

}  // namespace lockstep::planner
