// From the tensors of a checkpoint to one rank's packed weights. Names: transformers' glm4_moe.
#include <set>
#include <string_view>
#include <utility>

#include "runtime/model/tensor_groups.h"
#include "runtime/model/weights.h"

namespace lockstep {
namespace {

constexpr char kEmbeddingName[] = "model.embed_tokens.weight";

std::string PrefixOf(int64_t layer) { return kLayerPrefix + std::to_string(layer) + "."; }

// This rank's rows of a table of the vocabulary.
StatusOr<PackedPtr> LoadTable(WeightReader& reader, const ModelConfig& config, const Cuts& cuts,
                              const char* name, const char* what, double read_per_token) {
  const RowPart table{{name}, config.vocab_size, cuts.vocab[static_cast<size_t>(reader.rank())]};
  return reader.Rows(table, config.hidden_size, what, read_per_token);
}

// Everything that the pieces share.
struct Context {
  const ModelConfig& config;
  const Cuts& cuts;
  LocalShape shape;
  WeightReader& reader;
};

Status LoadAttention(Context& context, const std::string& prefix, Layer* layer) {
  const ModelConfig& config = context.config;
  const int64_t dim = config.head_dim;
  const int64_t query_height = config.num_attention_heads * dim;
  const int64_t kv_height = config.num_key_value_heads * dim;
  const Range queries{context.shape.query_heads.begin * dim, context.shape.query_heads.end * dim};
  const Range keys{context.shape.kv_heads.begin * dim, context.shape.kv_heads.end * dim};
  const std::vector<RowPart> parts = {{{prefix + "q_proj.weight"}, query_height, queries},
                                      {{prefix + "k_proj.weight"}, kv_height, keys},
                                      {{prefix + "v_proj.weight"}, kv_height, keys}};
  LOCKSTEP_ASSIGN_OR_RETURN(layer->qkv,
                            context.reader.Rows(parts, config.hidden_size, "attention"));
  if (config.attention_bias) {
    for (const auto& [names, height, rows] : parts) {
      const std::string bias = names[0].substr(0, names[0].size() - 6) + "bias";
      LOCKSTEP_ASSIGN_OR_RETURN(const auto values, context.reader.Vector(bias, height, rows));
      layer->qkv_bias.insert(layer->qkv_bias.end(), values.begin(), values.end());
    }
  }
  if (config.use_qk_norm) {
    LOCKSTEP_ASSIGN_OR_RETURN(layer->query_norm,
                              context.reader.Vector(prefix + "q_norm.weight", dim));
    LOCKSTEP_ASSIGN_OR_RETURN(layer->key_norm,
                              context.reader.Vector(prefix + "k_norm.weight", dim));
  }
  std::vector<Range> columns;
  for (const Range& heads : context.cuts.query_heads)
    columns.push_back({heads.begin * dim, heads.end * dim});
  LOCKSTEP_ASSIGN_OR_RETURN(
      layer->output,
      context.reader.Columns(
          {{prefix + "o_proj.weight"}, config.hidden_size, query_height, columns}, "attention"));
  return OkStatus();
}

StatusOr<FeedForward> LoadExperts(WeightReader& reader, const ModelConfig& config,
                                  const std::string& prefix, const std::vector<Range>& columns) {
  const int64_t inner = config.moe_intermediate_size;
  const int64_t count = config.n_routed_experts;
  const Range mine = columns[static_cast<size_t>(reader.rank())];
  RowPart gate{{}, inner, mine}, up{{}, inner, mine};
  ColumnPart down{{}, config.hidden_size, inner, columns};
  for (int64_t e = 0; e < count; ++e) {
    const std::string expert = prefix + std::to_string(e) + ".";
    gate.names.push_back(expert + "gate_proj.weight");
    up.names.push_back(expert + "up_proj.weight");
    down.names.push_back(expert + "down_proj.weight");
  }
  const double active =
      static_cast<double>(config.num_experts_per_tok) / static_cast<double>(count);
  FeedForward result;
  LOCKSTEP_ASSIGN_OR_RETURN(result.gate_up,
                            reader.Rows({gate, up}, config.hidden_size, "experts", active));
  LOCKSTEP_ASSIGN_OR_RETURN(result.down, reader.Columns(down, "experts", active));
  return result;
}

}  // namespace

StatusOr<Layer> LoadLayer(WeightReader& reader, const ModelConfig& config, const Cuts& cuts,
                          int64_t index) {
  Context context{config, cuts, ShapeOf(config, cuts, reader.rank()), reader};
  const std::string prefix = PrefixOf(index);
  const int64_t hidden = config.hidden_size;
  Layer layer;
  LOCKSTEP_ASSIGN_OR_RETURN(layer.input_norm, LoadInputNorm(reader, config, index));
  LOCKSTEP_ASSIGN_OR_RETURN(layer.post_attention_norm,
                            reader.Vector(prefix + "post_attention_layernorm.weight", hidden));
  LOCKSTEP_RETURN_IF_ERROR(
      config.has_latent_attention()
          ? LoadLatentAttention(reader, config, cuts, prefix + "self_attn.", &layer)
          : LoadAttention(context, prefix + "self_attn.", &layer));
  if (config.is_dense(index)) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        layer.dense, LoadFeedForward(reader, prefix + "mlp.", hidden, config.intermediate_size,
                                     cuts.dense_columns));
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(layer.mixture, LoadMixture(reader, config, cuts, prefix + "mlp."));
  }
  return layer;
}

StatusOr<FeedForward> LoadFeedForward(WeightReader& reader, const std::string& prefix,
                                      int64_t hidden, int64_t inner,
                                      const std::vector<Range>& columns) {
  const Range mine = columns[static_cast<size_t>(reader.rank())];
  const std::vector<RowPart> parts = {{{prefix + "gate_proj.weight"}, inner, mine},
                                      {{prefix + "up_proj.weight"}, inner, mine}};
  FeedForward result;
  LOCKSTEP_ASSIGN_OR_RETURN(result.gate_up, reader.Rows(parts, hidden, "feed-forward"));
  LOCKSTEP_ASSIGN_OR_RETURN(
      result.down,
      reader.Columns({{prefix + "down_proj.weight"}, hidden, inner, columns}, "feed-forward"));
  return result;
}

// Which experts a row takes hangs on the last bits of the router, whose products therefore see
// float32 activations in every mode: a quantized router becomes F32, exactly.
StatusOr<PackedPtr> LoadRouter(WeightReader& reader, const RowPart& part, int64_t inputs) {
  constexpr const char* kWhat = "router";
  LOCKSTEP_ASSIGN_OR_RETURN(
      const TensorInfo* info,
      FindShaped(reader.checkpoint(), part.names.front(), {part.height, inputs}));
  if (info->format.plain()) return reader.Rows(part, inputs, kWhat);
  LOCKSTEP_ASSIGN_OR_RETURN(HostMatrix stored, reader.HostRows(part, inputs, kWhat));
  LOCKSTEP_ASSIGN_OR_RETURN(HostMatrix wide,
                            reader.Allocate(DType::kF32, 1, part.rows.size(), inputs, kWhat));
  for (int64_t row = 0; row < part.rows.size() && !reader.counting(); ++row) {
    DecodeRow(stored.format, stored.row(0, row), inputs, 0, 0, inputs,
              reinterpret_cast<float*>(wide.row(0, row)));
  }
  return reader.Pack(std::move(wide), kWhat);
}

StatusOr<Mixture> LoadMixture(WeightReader& reader, const ModelConfig& config, const Cuts& cuts,
                              const std::string& prefix) {
  const int64_t experts = config.n_routed_experts;
  const RowPart router{{prefix + "gate.weight"}, experts, Range{0, experts}};
  Mixture mixture;
  LOCKSTEP_ASSIGN_OR_RETURN(mixture.router, LoadRouter(reader, router, config.hidden_size));
  LOCKSTEP_ASSIGN_OR_RETURN(mixture.correction,
                            reader.Vector(prefix + "gate.e_score_correction_bias", experts));
  LOCKSTEP_ASSIGN_OR_RETURN(mixture.experts,
                            LoadExperts(reader, config, prefix + "experts.", cuts.expert_columns));
  if (config.n_shared_experts > 0) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        mixture.shared, LoadFeedForward(reader, prefix + "shared_experts.", config.hidden_size,
                                        config.n_shared_experts * config.moe_intermediate_size,
                                        cuts.shared_columns));
  }
  return mixture;
}

Status CheckUnused(const ModelConfig& config, const std::vector<std::string>& unused) {
  const std::set<std::string_view> names(unused.begin(), unused.end());
  for (const std::string& name : unused) {
    if (name.find("rotary_emb.inv_freq") != std::string::npos) continue;
    const int64_t layer = LayerOf(name).value_or(-1);
    const std::string mtp_mark = kLayerPrefix + std::to_string(layer) + ".eh_proj.weight";
    if (layer >= config.num_hidden_layers && names.contains(mtp_mark)) continue;
    return ModelError(
        "the checkpoint holds %s, which config.json leaves no place for (layers, attention_bias, "
        "use_qk_norm, n_shared_experts or tie_word_embeddings); use the config.json that belongs "
        "to it",
        name);
  }
  return OkStatus();
}

StatusOr<PackedPtr> LoadEmbedding(WeightReader& reader, const ModelConfig& config,
                                  const Cuts& cuts) {
  // A token reads one row, which is nothing.
  return LoadTable(reader, config, cuts, kEmbeddingName, "embedding", 0);
}

StatusOr<PackedPtr> LoadHead(WeightReader& reader, const ModelConfig& config, const Cuts& cuts) {
  const char* name = config.tie_word_embeddings ? kEmbeddingName : "lm_head.weight";
  return LoadTable(reader, config, cuts, name, "head", 1);
}

StatusOr<std::vector<float>> LoadFinalNorm(WeightReader& reader, const ModelConfig& config) {
  return reader.Vector("model.norm.weight", config.hidden_size);
}

StatusOr<std::vector<float>> LoadInputNorm(WeightReader& reader, const ModelConfig& config,
                                           int64_t index) {
  return reader.Vector(PrefixOf(index) + "input_layernorm.weight", config.hidden_size);
}

StatusOr<Weights> LoadWeights(const ModelConfig& config, const Cuts& cuts, WeightReader& reader) {
  Weights weights;
  const Range layers = cuts.layers;
  if (layers.begin == 0) {
    LOCKSTEP_ASSIGN_OR_RETURN(weights.embedding, LoadEmbedding(reader, config, cuts));
  }
  if (layers.end == config.num_hidden_layers) {
    // The head before the layers: their column swaps keep slow and fast disks together to the end.
    LOCKSTEP_ASSIGN_OR_RETURN(weights.final_norm, LoadFinalNorm(reader, config));
    LOCKSTEP_ASSIGN_OR_RETURN(weights.head, LoadHead(reader, config, cuts));
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(weights.final_norm, LoadInputNorm(reader, config, layers.end));
  }
  for (int64_t index = layers.begin; index < layers.end; ++index) {
    LOCKSTEP_ASSIGN_OR_RETURN(Layer layer, LoadLayer(reader, config, cuts, index));
    weights.layers.push_back(std::move(layer));
  }
  weights.bytes_per_token = reader.bytes_per_token();
  if (!cuts.draft_rows.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(weights.draft, LoadDraftLayer(reader, config, cuts));
  }
  weights.bytes = reader.bytes();
  return weights;
}

std::vector<PackedPtr*> MatricesOf(Layer& layer) {
  std::vector<PackedPtr*> matrices;
  const auto add = [&](FusedMatrix& fused) {
    for (PackedPtr& part : fused.parts) matrices.push_back(&part);
  };
  const auto add_feed_forward = [&](FeedForward& ffn) {
    add(ffn.gate_up);
    matrices.push_back(&ffn.down);
  };
  add(layer.qkv);
  if (layer.latent.has_value()) {
    LatentAttention& latent = *layer.latent;
    for (PackedPtr* matrix : {&latent.query_down, &latent.query_up, &latent.latent_down,
                              &latent.key_absorb, &latent.value_up})
      matrices.push_back(matrix);
  }
  matrices.push_back(&layer.output);
  if (layer.dense.has_value()) add_feed_forward(*layer.dense);
  if (layer.mixture.has_value()) {
    matrices.push_back(&layer.mixture->router);
    add_feed_forward(layer.mixture->experts);
    if (layer.mixture->shared.has_value()) add_feed_forward(*layer.mixture->shared);
  }
  return matrices;
}

}  // namespace lockstep
