// GLM-4.5, 4.5-Air, 4.6, 4.7: the attention of one rank. The rest of the forward pass, with the two
// exchanges of a layer, is in decoder.cc. Source of the arithmetic: transformers'
// glm4_moe/modeling_glm4_moe.py.
//
// Shapes: R rows of this step, D hidden, H and K this rank's query and KV heads of d dimensions.
#include "runtime/model/decoder.h"

namespace lockstep {
namespace {

class Glm4Moe final : public Decoder {
 public:
  using Decoder::Decoder;

 private:
  void Attention(const Layer& layer, size_t index, Range rows, float* partial) override {
    kernels::AttentionArgs args = attention_;
    TakeRows(rows, &args);
    args.query_norm = layer.query_norm.empty() ? nullptr : layer.query_norm.data();
    args.key_norm = layer.key_norm.empty() ? nullptr : layer.key_norm.data();
    // [layers][keys, values][blocks][K][kBlockTokens] rows of d
    args.key_pages = kv_.data() + static_cast<int64_t>(index) * CacheBytes();
    args.value_pages = args.key_pages + CacheBytes() / 2;
    const float* bias = layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data();
    layer.qkv.MatMul(ops_, queue_, bias, NormedOf(rows), args.rows,
                     scratch_.qkv);  // [R, (H + 2 K) d]
    ops_.PrepareAttention(queue_, args);
    ops_.Attention(queue_, args);  // [R, H d]
    ops_.MatMul(queue_, *layer.output, nullptr, scratch_.attended, args.rows, partial,
                config_.hidden_size);  // [R, D]
  }

  int64_t PageArrays() const override { return 2; }  // keys, values

  void PrepareHeads(const Batch& batch) override {
    attention_.query_heads = shape_.query_heads.size();
    attention_.kv_heads = shape_.kv_heads.size();
    attention_.first_query_head = shape_.query_heads.begin;
    attention_.first_kv_head = shape_.kv_heads.begin;
    attention_.group = config_.query_heads_per_kv_head();
    attention_.head_dim = config_.head_dim;
    attention_.rotary_dim = config_.rotary_dim;
    attention_.block_tokens = kBlockTokens;
    attention_.cache_type = limits_.cache_type;
    attention_.eps = config_.rms_norm_eps;
    attention_.positions = batch.positions.data();
    attention_.sequences = batch.sequences.data();
    attention_.block_tables = scratch_.tables;
    attention_.cosines = scratch_.cosines;
    attention_.sines = scratch_.sines;
    attention_.qkv = scratch_.qkv;
    attention_.scratch = scratch_.attention;
    attention_.out = scratch_.attended;
  }

  kernels::AttentionArgs attention_;
};

}  // namespace

std::unique_ptr<Decoder> MakeGlm4Moe(ModelConfig config, const ModelLimits& limits,
                                     const LocalShape& shape, Weights weights,
                                     const ModelPlace& place) {
  return std::make_unique<Glm4Moe>(std::move(config), limits, shape, std::move(weights), place);
}

}  // namespace lockstep
