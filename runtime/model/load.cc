// From the tensors of a checkpoint to one rank's packed weights. Names: transformers' glm4_moe.
#include <algorithm>
#include <cstdlib>
#include <utility>

#include "runtime/model/weights.h"

namespace lockstep {
namespace {

// Everything that the pieces below share.
struct Context {
  const ModelConfig& config;
  const Cuts& cuts;
  LocalShape shape;
  SliceLoader& loader;
  const kernels::Backend& backend;
  Weights* weights;  // bytes are counted here

  StatusOr<PackedPtr> Pack(HostMatrix matrix, double read_per_token) {
    weights->bytes += matrix.data.bytes();
    weights->bytes_per_token +=
        static_cast<uint64_t>(static_cast<double>(matrix.data.bytes()) * read_per_token);
    return backend.Pack(std::move(matrix));
  }
};

// One tensor whose rows are sliced, as part of a fused matrix.
struct RowPart {
  std::string name;
  int64_t height;
  Range rows;
};

StatusOr<PackedPtr> LoadRows(Context& context, const std::vector<RowPart>& parts,
                             const char* what) {
  std::vector<std::string> names;
  int64_t outputs = 0;
  for (const RowPart& part : parts) {
    names.push_back(part.name);
    outputs += part.rows.size();
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const DType type, context.loader.CommonType(names));
  LOCKSTEP_ASSIGN_OR_RETURN(
      HostMatrix matrix, HostMatrix::Allocate(type, 1, outputs, context.config.hidden_size, what));
  int64_t at = 0;
  for (const RowPart& part : parts) {
    LOCKSTEP_RETURN_IF_ERROR(
        context.loader.ReadRows(part.name, part.height, part.rows, &matrix, 0, at));
    at += part.rows.size();
  }
  return context.Pack(std::move(matrix), 1);
}

StatusOr<PackedPtr> LoadColumns(Context& context, const std::string& name, int64_t width,
                                const std::vector<Range>& columns, const char* what) {
  LOCKSTEP_ASSIGN_OR_RETURN(const DType type, context.loader.CommonType({name}));
  const Range mine = columns[static_cast<size_t>(context.loader.rank())];
  LOCKSTEP_ASSIGN_OR_RETURN(
      HostMatrix matrix,
      HostMatrix::Allocate(type, 1, context.config.hidden_size, mine.size(), what));
  LOCKSTEP_RETURN_IF_ERROR(context.loader.ReadColumns(name, width, columns, &matrix, 0));
  return context.Pack(std::move(matrix), 1);
}

StatusOr<std::vector<float>> LoadVector(Context& context, const std::string& name, int64_t length) {
  return context.loader.ReadVector(name, length, Range{0, length});
}

Status LoadAttention(Context& context, const std::string& prefix, Layer* layer) {
  const ModelConfig& config = context.config;
  const int64_t dim = config.head_dim;
  const int64_t query_height = config.num_attention_heads * dim;
  const int64_t kv_height = config.num_key_value_heads * dim;
  const Range queries{context.shape.query_heads.begin * dim, context.shape.query_heads.end * dim};
  const Range keys{context.shape.kv_heads.begin * dim, context.shape.kv_heads.end * dim};
  const std::vector<RowPart> parts = {{prefix + "q_proj.weight", query_height, queries},
                                      {prefix + "k_proj.weight", kv_height, keys},
                                      {prefix + "v_proj.weight", kv_height, keys}};
  LOCKSTEP_ASSIGN_OR_RETURN(layer->qkv, LoadRows(context, parts, "attention"));
  if (config.attention_bias) {
    for (const auto& [name, height, rows] : parts) {
      const std::string bias = name.substr(0, name.size() - 6) + "bias";
      LOCKSTEP_ASSIGN_OR_RETURN(const auto values, context.loader.ReadVector(bias, height, rows));
      layer->qkv_bias.insert(layer->qkv_bias.end(), values.begin(), values.end());
    }
  }
  if (config.use_qk_norm) {
    LOCKSTEP_ASSIGN_OR_RETURN(layer->query_norm,
                              LoadVector(context, prefix + "q_norm.weight", dim));
    LOCKSTEP_ASSIGN_OR_RETURN(layer->key_norm, LoadVector(context, prefix + "k_norm.weight", dim));
  }
  std::vector<Range> columns;
  for (const Range& heads : context.cuts.query_heads)
    columns.push_back({heads.begin * dim, heads.end * dim});
  LOCKSTEP_ASSIGN_OR_RETURN(layer->output, LoadColumns(context, prefix + "o_proj.weight",
                                                       query_height, columns, "attention"));
  return OkStatus();
}

StatusOr<FeedForward> LoadFeedForward(Context& context, const std::string& prefix, int64_t inner,
                                      const std::vector<Range>& columns) {
  const Range mine = columns[static_cast<size_t>(context.loader.rank())];
  FeedForward result;
  LOCKSTEP_ASSIGN_OR_RETURN(result.gate_up, LoadRows(context,
                                                     {{prefix + "gate_proj.weight", inner, mine},
                                                      {prefix + "up_proj.weight", inner, mine}},
                                                     "feed-forward"));
  LOCKSTEP_ASSIGN_OR_RETURN(result.down, LoadColumns(context, prefix + "down_proj.weight", inner,
                                                     columns, "feed-forward"));
  return result;
}

StatusOr<FeedForward> LoadExperts(Context& context, const std::string& prefix) {
  const ModelConfig& config = context.config;
  const int64_t inner = config.moe_intermediate_size;
  const int64_t count = config.n_routed_experts;
  const std::vector<Range>& columns = context.cuts.expert_columns;
  const Range mine = context.shape.expert_columns;
  std::vector<std::string> inputs, outputs;
  for (int64_t e = 0; e < count; ++e) {
    const std::string expert = prefix + std::to_string(e) + ".";
    inputs.push_back(expert + "gate_proj.weight");
    inputs.push_back(expert + "up_proj.weight");
    outputs.push_back(expert + "down_proj.weight");
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const DType input_type, context.loader.CommonType(inputs));
  LOCKSTEP_ASSIGN_OR_RETURN(const DType output_type, context.loader.CommonType(outputs));
  LOCKSTEP_ASSIGN_OR_RETURN(
      HostMatrix gate_up,
      HostMatrix::Allocate(input_type, count, 2 * mine.size(), config.hidden_size, "experts"));
  LOCKSTEP_ASSIGN_OR_RETURN(
      HostMatrix down,
      HostMatrix::Allocate(output_type, count, config.hidden_size, mine.size(), "experts"));
  for (int64_t e = 0; e < count; ++e) {
    LOCKSTEP_RETURN_IF_ERROR(context.loader.ReadRows(inputs[2 * e], inner, mine, &gate_up, e, 0));
    LOCKSTEP_RETURN_IF_ERROR(
        context.loader.ReadRows(inputs[2 * e + 1], inner, mine, &gate_up, e, mine.size()));
    LOCKSTEP_RETURN_IF_ERROR(context.loader.ReadColumns(outputs[e], inner, columns, &down, e));
  }
  const double active =
      static_cast<double>(config.num_experts_per_tok) / static_cast<double>(count);
  FeedForward result;
  LOCKSTEP_ASSIGN_OR_RETURN(result.gate_up, context.Pack(std::move(gate_up), active));
  LOCKSTEP_ASSIGN_OR_RETURN(result.down, context.Pack(std::move(down), active));
  return result;
}

StatusOr<Mixture> LoadMixture(Context& context, const std::string& prefix) {
  const ModelConfig& config = context.config;
  const int64_t experts = config.n_routed_experts;
  Mixture mixture;
  LOCKSTEP_ASSIGN_OR_RETURN(
      mixture.router,
      LoadRows(context, {{prefix + "gate.weight", experts, Range{0, experts}}}, "router"));
  LOCKSTEP_ASSIGN_OR_RETURN(mixture.correction,
                            LoadVector(context, prefix + "gate.e_score_correction_bias", experts));
  LOCKSTEP_ASSIGN_OR_RETURN(mixture.experts, LoadExperts(context, prefix + "experts."));
  if (config.n_shared_experts > 0) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        mixture.shared, LoadFeedForward(context, prefix + "shared_experts.",
                                        config.n_shared_experts * config.moe_intermediate_size,
                                        context.cuts.shared_columns));
  }
  return mixture;
}

StatusOr<Layer> LoadLayer(Context& context, int64_t index) {
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const int64_t hidden = context.config.hidden_size;
  Layer layer;
  LOCKSTEP_ASSIGN_OR_RETURN(layer.input_norm,
                            LoadVector(context, prefix + "input_layernorm.weight", hidden));
  LOCKSTEP_ASSIGN_OR_RETURN(
      layer.post_attention_norm,
      LoadVector(context, prefix + "post_attention_layernorm.weight", hidden));
  LOCKSTEP_RETURN_IF_ERROR(LoadAttention(context, prefix + "self_attn.", &layer));
  if (context.config.is_dense(index)) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        layer.dense, LoadFeedForward(context, prefix + "mlp.", context.config.intermediate_size,
                                     context.cuts.dense_columns));
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(layer.mixture, LoadMixture(context, prefix + "mlp."));
  }
  return layer;
}

// Every tensor has its place in the forward pass, but for those of MTP layers and for the
// frequencies that old checkpoints carry: a bias that config.json does not announce would silently
// change the text.
Status CheckUnused(const ModelConfig& config, const SliceLoader& loader) {
  const std::vector<std::string> unused = loader.Unused();
  const std::string prefix = "model.layers.";
  for (const std::string& name : unused) {
    if (name.find("rotary_emb.inv_freq") != std::string::npos) continue;
    const bool in_layer = name.compare(0, prefix.size(), prefix) == 0;
    const int64_t layer = in_layer ? std::atoll(name.c_str() + prefix.size()) : -1;
    const std::string mtp_mark = prefix + std::to_string(layer) + ".eh_proj.weight";
    const bool is_mtp = layer >= config.num_hidden_layers &&
                        std::find(unused.begin(), unused.end(), mtp_mark) != unused.end();
    if (is_mtp) continue;
    return ModelError(
        "the checkpoint holds %s, which config.json leaves no place for (layers, attention_bias, "
        "use_qk_norm, n_shared_experts or tie_word_embeddings); use the config.json that belongs "
        "to it",
        name);
  }
  return OkStatus();
}

}  // namespace

StatusOr<Weights> LoadWeights(const ModelConfig& config, const Cuts& cuts, SliceLoader& loader,
                              const kernels::Backend& backend) {
  Weights weights;
  Context context{config, cuts, ShapeOf(config, cuts, loader.rank()), loader, backend, &weights};
  const RowPart embedding{"model.embed_tokens.weight", config.vocab_size, context.shape.vocab};
  LOCKSTEP_ASSIGN_OR_RETURN(weights.embedding, LoadRows(context, {embedding}, "embedding"));
  weights.bytes_per_token = 0;  // one row of the embedding is nothing
  // The head before the layers: their column swaps keep slow and fast disks together to the end.
  LOCKSTEP_ASSIGN_OR_RETURN(weights.final_norm,
                            LoadVector(context, "model.norm.weight", config.hidden_size));
  const bool own_head = !config.tie_word_embeddings;
  const RowPart head{own_head ? "lm_head.weight" : embedding.name, config.vocab_size,
                     context.shape.vocab};
  LOCKSTEP_ASSIGN_OR_RETURN(weights.head, LoadRows(context, {head}, "head"));
  for (int64_t index = 0; index < config.num_hidden_layers; ++index) {
    LOCKSTEP_ASSIGN_OR_RETURN(Layer layer, LoadLayer(context, index));
    weights.layers.push_back(std::move(layer));
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckUnused(config, loader));
  return weights;
}

uint64_t WeightBytes(const ModelConfig& config, const LocalShape& shape, uint64_t element_bytes) {
  const auto hidden = static_cast<uint64_t>(config.hidden_size);
  const auto columns = [&](const Range& range) {
    return 3 * hidden * static_cast<uint64_t>(range.size());
  };
  uint64_t elements = 2 * hidden * static_cast<uint64_t>(shape.vocab.size());
  for (int64_t layer = 0; layer < config.num_hidden_layers; ++layer) {
    elements += hidden * static_cast<uint64_t>(shape.qkv_width + shape.attention_width);
    if (config.is_dense(layer)) {
      elements += columns(shape.dense_columns);
    } else {
      elements +=
          static_cast<uint64_t>(config.n_routed_experts) * (columns(shape.expert_columns) + hidden);
      elements += columns(shape.shared_columns);
    }
  }
  return elements * element_bytes;
}

}  // namespace lockstep
