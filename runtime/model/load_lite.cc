// The latent attention of glm4_moe_lite: from its tensors to one rank's packed weights. Names:
// transformers' glm4_moe_lite; a head's key and value matrices apart where the file has them so.
#include <cstring>
#include <utility>

#include "runtime/model/weights.h"

namespace lockstep {
namespace {

constexpr const char* kWhat = "attention";

// The first n rows of every head of `all` (its heads [n + v, L] one below the other), transposed,
// into keys: heads x [L, n], in the type of `all` if that is plain numbers and in F32 if not.
void TransposeKeys(const HostMatrix& all, int64_t head_rows, HostMatrix* keys) {
  const int64_t latent = all.inputs;
  const size_t element = SizeOf(keys->format.plain_type());
  const uint64_t row_bytes = all.row_bytes();
  std::vector<float> decoded(static_cast<size_t>(latent));
  for (int64_t head = 0; head < keys->count; ++head) {
    for (int64_t i = 0; i < keys->inputs; ++i) {
      const std::byte* from =
          all.data.data() + static_cast<uint64_t>(head * head_rows + i) * row_bytes;
      if (!all.format.plain()) {
        DecodeRow(all.format, from, latent, 0, 0, latent, decoded.data());
        from = reinterpret_cast<const std::byte*>(decoded.data());
      }
      std::byte* to = keys->row(head, 0) + static_cast<size_t>(i) * element;
      const size_t stride = static_cast<size_t>(keys->inputs) * element;
      for (int64_t j = 0; j < latent; ++j, to += stride, from += element)
        std::memcpy(to, from, element);
    }
  }
}

// The last rows of every head of `all`, in its format, into values: heads x [v, L].
void CopyValues(const HostMatrix& all, int64_t head_rows, HostMatrix* values) {
  const uint64_t row_bytes = all.row_bytes();
  for (int64_t head = 0; head < values->count; ++head) {
    const int64_t first = (head + 1) * head_rows - values->outputs;
    std::memcpy(values->row(head, 0), all.data.data() + static_cast<uint64_t>(first) * row_bytes,
                static_cast<uint64_t>(values->outputs) * row_bytes);
  }
}

// The key and value rows of all heads in one tensor, as Hugging Face's checkpoints have them. Keys
// are needed transposed. The blocks of a quantized row cannot be turned: its keys become the F32
// that they mean.
Status LoadJoinedHeads(WeightReader& reader, const ModelConfig& config, Range heads,
                       const std::string& name, LatentAttention* attention) {
  const int64_t n = config.qk_nope_head_dim;
  const int64_t latent = config.kv_lora_rank;
  const int64_t rows = n + config.v_head_dim;
  const RowPart part{
      {name}, config.num_attention_heads * rows, {heads.begin * rows, heads.end * rows}};
  LOCKSTEP_ASSIGN_OR_RETURN(const WeightFormat format, CommonFormat(reader.checkpoint(), {name}));
  const WeightFormat turned = format.plain() ? format : WeightFormat(DType::kF32);
  LOCKSTEP_ASSIGN_OR_RETURN(HostMatrix keys,
                            reader.Allocate(turned, heads.size(), latent, n, kWhat));
  LOCKSTEP_ASSIGN_OR_RETURN(
      HostMatrix values, reader.Allocate(format, heads.size(), config.v_head_dim, latent, kWhat));
  LOCKSTEP_ASSIGN_OR_RETURN(const HostMatrix all, reader.HostRows(part, latent, kWhat));
  if (!reader.counting()) {
    TransposeKeys(all, rows, &keys);
    CopyValues(all, rows, &values);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(attention->key_absorb, reader.Pack(std::move(keys), kWhat));
  LOCKSTEP_ASSIGN_OR_RETURN(attention->value_up, reader.Pack(std::move(values), kWhat));
  return OkStatus();
}

// A tensor for each head's transposed key rows and for its value rows, as GGUF and MLX files have
// them.
Status LoadPartedHeads(WeightReader& reader, const ModelConfig& config, Range heads,
                       const std::string& prefix, LatentAttention* attention) {
  RowPart keys{{}, config.kv_lora_rank, {0, config.kv_lora_rank}};
  RowPart values{{}, config.v_head_dim, {0, config.v_head_dim}};
  reader.Skip(prefix + "kv_b_proj.weight");  // some files hold both forms
  for (int64_t head = 0; head < config.num_attention_heads; ++head) {
    const std::string key = prefix + "k_b_proj." + std::to_string(head) + ".weight";
    const std::string value = prefix + "v_b_proj." + std::to_string(head) + ".weight";
    if (head >= heads.begin && head < heads.end) {
      keys.names.push_back(key);
      values.names.push_back(value);
    } else {
      reader.Skip(key);
      reader.Skip(value);
    }
  }
  LOCKSTEP_ASSIGN_OR_RETURN(attention->key_absorb,
                            reader.Rows(keys, config.qk_nope_head_dim, kWhat));
  LOCKSTEP_ASSIGN_OR_RETURN(attention->value_up, reader.Rows(values, config.kv_lora_rank, kWhat));
  return OkStatus();
}

}  // namespace

Status LoadLatentAttention(WeightReader& reader, const ModelConfig& config, const Cuts& cuts,
                           const std::string& prefix, Layer* layer) {
  const Range heads = cuts.query_heads[static_cast<size_t>(reader.rank())];
  const int64_t dim = config.head_dim;
  const int64_t hidden = config.hidden_size;
  const RowPart query_down{
      {prefix + "q_a_proj.weight"}, config.q_lora_rank, {0, config.q_lora_rank}};
  const RowPart query_up{{prefix + "q_b_proj.weight"},
                         config.num_attention_heads * dim,
                         {heads.begin * dim, heads.end * dim}};
  const RowPart latent_down{
      {prefix + "kv_a_proj_with_mqa.weight"}, config.latent_width(), {0, config.latent_width()}};
  ColumnPart output{
      {prefix + "o_proj.weight"}, hidden, config.num_attention_heads * config.v_head_dim, {}};
  for (const Range& range : cuts.query_heads)
    output.columns.push_back({range.begin * config.v_head_dim, range.end * config.v_head_dim});

  LatentAttention attention;
  LOCKSTEP_ASSIGN_OR_RETURN(attention.query_down, reader.Rows(query_down, hidden, kWhat));
  LOCKSTEP_ASSIGN_OR_RETURN(attention.query_norm,
                            reader.Vector(prefix + "q_a_layernorm.weight", config.q_lora_rank));
  LOCKSTEP_ASSIGN_OR_RETURN(attention.query_up, reader.Rows(query_up, config.q_lora_rank, kWhat));
  LOCKSTEP_ASSIGN_OR_RETURN(attention.latent_down, reader.Rows(latent_down, hidden, kWhat));
  LOCKSTEP_ASSIGN_OR_RETURN(attention.latent_norm,
                            reader.Vector(prefix + "kv_a_layernorm.weight", config.kv_lora_rank));
  const bool parted = reader.checkpoint().Find(prefix + "k_b_proj.0.weight") != nullptr;
  LOCKSTEP_RETURN_IF_ERROR(
      parted ? LoadPartedHeads(reader, config, heads, prefix, &attention)
             : LoadJoinedHeads(reader, config, heads, prefix + "kv_b_proj.weight", &attention));
  LOCKSTEP_ASSIGN_OR_RETURN(layer->output, reader.Columns(output, kWhat));
  layer->latent = std::move(attention);
  return OkStatus();
}

}  // namespace lockstep
