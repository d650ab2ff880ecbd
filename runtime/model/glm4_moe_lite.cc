// GLM-4.7-Flash: the attention of one rank. The rest of the forward pass, with the two exchanges of
// a layer, is in decoder.cc. Source of the arithmetic: transformers'
// glm4_moe_lite/modeling_glm4_moe_lite.py.
//
// Attention is latent (MLA): a token leaves one latent and one rotated key for all heads, the same
// on every rank, and a head's own keys and values are its matrices K_h and V_h times the latent.
// They are never made: with absorbed weights a head's query is taken to the latents,
// (K_h^T q) . latent = q . (K_h latent), and V_h follows after the weighted sum of latents.
// transformers makes them; the sums are the same in another order. A prompt's rows take this form
// too: steps of a few hundred rows would pay more for making keys and values of all positions than
// they save, and a position's bits may not depend on the step that it was computed in
// (docs/adr/0010-absorbed-prompts.md).
//
// Shapes: R rows of this step, D hidden, H this rank's heads of n plain and r rotated query
// dimensions and v value dimensions, Q the query's latent, L the latent.
#include "runtime/model/decoder.h"

namespace lockstep {
namespace {

// transformers makes the norms of both latents with their default epsilon, not with config.json's
// rms_norm_eps (5.23.0; vLLM, mlx-lm and llama.cpp take rms_norm_eps, which moves the logits of a
// small random model by 3e-4). It is the reference, so its number counts here.
constexpr double kLatentNormEps = 1e-6;

class Glm4MoeLite final : public Decoder {
 public:
  using Decoder::Decoder;

 private:
  void Attention(const Layer& layer, size_t index, Range step_rows, float* partial) override {
    const LatentAttention& weights = *layer.latent;
    const LatentScratch& scratch = scratch_.latent;
    kernels::LatentAttentionArgs args = attention_;
    TakeRows(step_rows, &args);
    const int64_t rows = args.rows;
    const kernels::ExpertGroups& heads = scratch.heads[rows == step_rows_     ? 0
                                                       : step_rows.begin == 0 ? 1
                                                                              : 2];
    args.latent_norm = weights.latent_norm.data();
    args.pages = kv_.data() + static_cast<int64_t>(index) * CacheBytes();
    const float* normed = NormedOf(step_rows);
    ops_.MatMul(queue_, *weights.query_down, nullptr, normed, rows, scratch.query_latents,
                config_.q_lora_rank);  // [R, Q]
    ops_.RmsNorm(queue_, scratch.query_latents, weights.query_norm.data(), kLatentNormEps, rows,
                 config_.q_lora_rank, scratch.query_latents);
    ops_.MatMul(queue_, *weights.query_up, nullptr, scratch.query_latents, rows, scratch_.qkv,
                shape_.qkv_width);  // [R, H (n + r)]
    ops_.MatMul(queue_, *weights.latent_down, nullptr, normed, rows, scratch.latents,
                config_.latent_width());  // [R, L + r]
    ops_.PrepareLatentAttention(queue_, args);
    ops_.GroupedMatMul(queue_, *weights.key_absorb, heads, scratch.plain_queries, false,
                       scratch.absorbed_queries, config_.kv_lora_rank);  // [H, R, L]
    ops_.LatentAttention(queue_, args);                                  // [H, R, L]
    ops_.GroupedMatMul(queue_, *weights.value_up, heads, scratch.attended_latents, false,
                       scratch.head_values, config_.v_head_dim);  // [H, R, v]
    ops_.JoinHeads(queue_, scratch.head_values, args.heads, rows, config_.v_head_dim,
                   scratch_.attended);  // [R, H v]
    ops_.MatMul(queue_, *layer.output, nullptr, scratch_.attended, rows, partial,
                config_.hidden_size);  // [R, D]
  }

  int64_t PageArrays() const override { return 1; }

  void PrepareHeads(const Batch& batch) override {
    const LatentScratch& scratch = scratch_.latent;
    step_rows_ = batch.rows();
    const int64_t first_half = FirstHalf(step_rows_);
    FillHeads(step_rows_, scratch.heads[0]);
    FillHeads(first_half, scratch.heads[1]);
    FillHeads(step_rows_ - first_half, scratch.heads[2]);
    attention_.heads = shape_.query_heads.size();
    attention_.nope_dim = config_.qk_nope_head_dim;
    attention_.rope_dim = config_.qk_rope_head_dim;
    attention_.latent_dim = config_.kv_lora_rank;
    attention_.block_tokens = kBlockTokens;
    attention_.cache_type = limits_.cache_type;
    attention_.eps = kLatentNormEps;
    attention_.positions = batch.positions.data();
    attention_.sequences = batch.sequences.data();
    attention_.block_tables = scratch_.tables;
    attention_.cosines = scratch_.cosines;
    attention_.sines = scratch_.sines;
    attention_.latents = scratch.latents;
    attention_.queries = scratch_.qkv;
    attention_.plain_queries = scratch.plain_queries;
    attention_.rotated_queries = scratch.rotated_queries;
    attention_.absorbed_queries = scratch.absorbed_queries;
    attention_.scratch = scratch_.attention;
    attention_.out = scratch.attended_latents;
  }

  // Every matrix of a stack of heads takes all rows.
  void FillHeads(int64_t rows, const kernels::ExpertGroups& groups) const {
    const int64_t heads = shape_.query_heads.size();
    for (int64_t head = 0; head < heads; ++head) {
      groups.groups[head] = {static_cast<int32_t>(head), static_cast<int32_t>(head * rows),
                             static_cast<int32_t>((head + 1) * rows)};
    }
    *groups.group_count = static_cast<int32_t>(heads);
  }

  int64_t step_rows_ = 0;
  kernels::LatentAttentionArgs attention_;
};

}  // namespace

std::unique_ptr<Decoder> MakeGlm4MoeLite(ModelConfig config, const ModelLimits& limits,
                                         const LocalShape& shape, Weights weights,
                                         const ModelPlace& place) {
  return std::make_unique<Glm4MoeLite>(std::move(config), limits, shape, std::move(weights), place);
}

}  // namespace lockstep
