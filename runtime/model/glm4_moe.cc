// GLM-4.5, 4.5-Air, 4.6, 4.7: the forward pass of one rank, with the two exchanges of a layer
// written where they happen. Source of the arithmetic: transformers' glm4_moe/modeling_glm4_moe.py.
//
// Shapes: R rows of this step, D hidden, H and K this rank's query and KV heads of d dimensions, F
// this rank's feed-forward columns, E experts of which each row takes the top k, V this rank's
// vocabulary rows.
#include <cstring>

#include "runtime/base/digest.h"
#include "runtime/model/architectures.h"
#include "runtime/model/model.h"
#include "runtime/model/partial_sum.h"
#include "runtime/model/rope.h"
#include "runtime/model/scratch.h"
#include "runtime/model/weights.h"

namespace lockstep {
namespace {

class Glm4Moe final : public Model {
 public:
  Glm4Moe(ModelConfig config, ModelLimits limits, LocalShape shape, Weights weights,
          const ModelPlace& place)
      : config_(std::move(config)),
        limits_(limits),
        shape_(shape),
        weights_(std::move(weights)),
        group_(place.group),
        ops_(place.backend),
        queue_{&place.pool} {}

  Status Allocate(MemoryPlan plan, uint64_t bytes_read) {
    memory_ = plan;
    memory_.weight_bytes = weights_.bytes;
    bytes_read_ = bytes_read;
    LOCKSTEP_ASSIGN_OR_RETURN(kv_, Buffer::Allocate(memory_.kv_bytes + 64, "the KV cache"));
    LOCKSTEP_ASSIGN_OR_RETURN(storage_,
                              Buffer::Allocate(memory_.scratch_bytes, "the step's scratch"));
    Arena arena(&storage_);
    scratch_ = TakeScratch(config_, shape_, limits_, queue_.pool->count(), &arena);
    return OkStatus();
  }

  const ModelConfig& config() const override { return config_; }
  const ModelLimits& limits() const override { return limits_; }
  const MemoryPlan& memory() const override { return memory_; }
  uint64_t bytes_read() const override { return bytes_read_; }
  uint64_t bytes_per_token() const override { return weights_.bytes_per_token; }

  StatusOr<StepOutput> Step(const Batch& batch) override {
    LOCKSTEP_RETURN_IF_ERROR(CheckBatch(batch));
    const int64_t rows = batch.rows();
    PrepareRows(batch);
    PartialSum sum(group_, scratch_.sum);

    LOCKSTEP_ASSIGN_OR_RETURN(float* partial, sum.Begin(rows * config_.hidden_size));
    ops_.Embed(queue_, *weights_.embedding, shape_.vocab.begin, batch.tokens.data(), rows,
               partial);  // [R, D]
    LOCKSTEP_ASSIGN_OR_RETURN(const float* embedded, sum.Reduce());
    std::memcpy(scratch_.residual, embedded,
                static_cast<size_t>(rows * config_.hidden_size) * sizeof(float));
    ops_.RmsNorm(queue_, scratch_.residual, weights_.layers[0].input_norm.data(),
                 config_.rms_norm_eps, rows, config_.hidden_size, scratch_.normed);

    for (size_t index = 0; index < weights_.layers.size(); ++index) {
      const Layer& layer = weights_.layers[index];
      LOCKSTEP_ASSIGN_OR_RETURN(partial, sum.Begin(rows * config_.hidden_size));
      Attention(layer, index, rows, partial);
      LOCKSTEP_ASSIGN_OR_RETURN(const float* attended,
                                sum.Reduce());  // first exchange of the layer
      AddAndNorm(attended, layer.post_attention_norm, rows);

      LOCKSTEP_ASSIGN_OR_RETURN(partial, sum.Begin(rows * config_.hidden_size));
      if (layer.dense.has_value()) {
        DenseFeedForward(*layer.dense, rows, partial);
      } else {
        MixtureOfExperts(*layer.mixture, rows, partial);
      }
      LOCKSTEP_ASSIGN_OR_RETURN(const float* fed, sum.Reduce());  // second exchange of the layer
      const bool last = index + 1 == weights_.layers.size();
      AddAndNorm(fed, last ? weights_.final_norm : weights_.layers[index + 1].input_norm, rows);
    }
    return Head(batch);
  }

 private:
  // residual += delta; normed = rms_norm(residual).
  void AddAndNorm(const float* delta, const std::vector<float>& norm, int64_t rows) {
    ops_.AddRmsNorm(queue_, scratch_.residual, delta, norm.data(), config_.rms_norm_eps, rows,
                    config_.hidden_size, scratch_.normed);
  }

  // normed [R, D] -> partial [R, D]: this rank's heads, through their columns of o_proj.
  void Attention(const Layer& layer, size_t index, int64_t rows, float* partial) {
    kernels::AttentionArgs args = attention_;
    args.rows = rows;
    args.query_norm = layer.query_norm.empty() ? nullptr : layer.query_norm.data();
    args.key_norm = layer.key_norm.empty() ? nullptr : layer.key_norm.data();
    args.key_pages = kv_.as<float>() + static_cast<int64_t>(index) * 2 * PageElements();
    args.value_pages = args.key_pages + PageElements();
    const float* bias = layer.qkv_bias.empty() ? nullptr : layer.qkv_bias.data();
    ops_.MatMul(queue_, *layer.qkv, bias, scratch_.normed, rows, scratch_.qkv);  // [R, (H + 2 K) d]
    ops_.PrepareAttention(queue_, args);
    ops_.Attention(queue_, args);                                                   // [R, H d]
    ops_.MatMul(queue_, *layer.output, nullptr, scratch_.attended, rows, partial);  // [R, D]
  }

  void DenseFeedForward(const FeedForward& ffn, int64_t rows, float* partial) {
    const int64_t columns = ffn.down->inputs();
    ops_.MatMul(queue_, *ffn.gate_up, nullptr, scratch_.normed, rows,
                scratch_.gate_up);                                               // [R, 2 F]
    ops_.SiluMul(queue_, scratch_.gate_up, rows, columns, scratch_.activated);   // [R, F]
    ops_.MatMul(queue_, *ffn.down, nullptr, scratch_.activated, rows, partial);  // [R, D]
  }

  void MixtureOfExperts(const Mixture& mixture, int64_t rows, float* partial) {
    kernels::RouterArgs route = router_;
    route.rows = rows;
    route.correction = mixture.correction.data();
    ops_.MatMul(queue_, *mixture.router, nullptr, scratch_.normed, rows,
                scratch_.router_logits);  // [R, E]
    ops_.Route(queue_, route);            // [R, k]
    ops_.GroupRows(queue_, route, scratch_.groups);
    digest_ = DigestOf(route.chosen, static_cast<size_t>(rows * route.top_k), digest_);

    const FeedForward& experts = mixture.experts;
    const int64_t columns = experts.down->inputs();
    ops_.GroupedMatMul(queue_, *experts.gate_up, scratch_.groups, scratch_.normed, true,
                       scratch_.expert_gate_up);  // [R k, 2 F]
    ops_.SiluMul(queue_, scratch_.expert_gate_up, rows * route.top_k, columns,
                 scratch_.expert_activated);
    ops_.GroupedMatMul(queue_, *experts.down, scratch_.groups, scratch_.expert_activated, false,
                       scratch_.expert_out);  // [R k, D]
    const float* shared = nullptr;
    if (mixture.shared.has_value()) {
      DenseFeedForward(*mixture.shared, rows, scratch_.shared_out);
      shared = scratch_.shared_out;
    }
    ops_.CombineExperts(queue_, route, scratch_.groups, scratch_.expert_out, shared,
                        config_.hidden_size, partial);
  }

  // Final hidden states and this rank's logits of the wanted rows.
  StepOutput Head(const Batch& batch) {
    const int64_t hidden = config_.hidden_size;
    StepOutput output;
    output.outputs = static_cast<int64_t>(batch.output_rows.size());
    for (int64_t i = 0; i < output.outputs; ++i) {
      std::memcpy(scratch_.final_hidden + i * hidden,
                  scratch_.normed + batch.output_rows[i] * hidden,
                  static_cast<size_t>(hidden) * sizeof(float));
    }
    ops_.MatMul(queue_, *weights_.head, nullptr, scratch_.final_hidden, output.outputs,
                scratch_.logits);
    output.vocab = shape_.vocab;
    output.logits =
        std::span(scratch_.logits, static_cast<size_t>(output.outputs * shape_.vocab.size()));
    output.hidden =
        std::span<const float>(scratch_.final_hidden, static_cast<size_t>(output.outputs * hidden));
    output.digest = DigestOf(output.hidden.data(), output.hidden.size(), digest_);
    return output;
  }

  // What the layers share in this step: where rows stand, and their rotations.
  void PrepareRows(const Batch& batch) {
    digest_ = 0;
    RotaryAngles(config_.rope_theta, config_.rotary_dim, batch.positions, scratch_.cosines,
                 scratch_.sines);
    for (size_t i = 0; i < batch.block_tables.size(); ++i)
      scratch_.tables[i] = batch.block_tables[i].data();
    FillAttention(batch);
    router_.experts = config_.n_routed_experts;
    router_.top_k = config_.num_experts_per_tok;
    router_.n_group = config_.n_group;
    router_.topk_group = config_.topk_group;
    router_.normalize = config_.norm_topk_prob;
    router_.scale = static_cast<float>(config_.routed_scaling_factor);
    router_.logits = scratch_.router_logits;
    router_.chosen = scratch_.chosen;
    router_.weights = scratch_.expert_weights;
  }

  void FillAttention(const Batch& batch) {
    attention_.query_heads = shape_.query_heads.size();
    attention_.kv_heads = shape_.kv_heads.size();
    attention_.first_query_head = shape_.query_heads.begin;
    attention_.first_kv_head = shape_.kv_heads.begin;
    attention_.group = config_.query_heads_per_kv_head();
    attention_.head_dim = config_.head_dim;
    attention_.rotary_dim = config_.rotary_dim;
    attention_.block_tokens = kBlockTokens;
    attention_.eps = config_.rms_norm_eps;
    attention_.positions = batch.positions.data();
    attention_.sequences = batch.sequences.data();
    attention_.block_tables = scratch_.tables;
    attention_.cosines = scratch_.cosines;
    attention_.sines = scratch_.sines;
    attention_.qkv = scratch_.qkv;
    attention_.scores = scratch_.scores;
    attention_.score_stride = scratch_.score_stride;
    attention_.out = scratch_.attended;
  }

  // Batches come from another rank's plan: sizes are checked before anything indexes by them.
  Status CheckBatch(const Batch& batch) const {
    const int64_t rows = batch.rows();
    if (rows < 1 || rows > limits_.max_rows || batch.positions.size() != batch.tokens.size() ||
        batch.sequences.size() != batch.tokens.size() ||
        static_cast<int64_t>(batch.output_rows.size()) > limits_.max_outputs ||
        static_cast<int64_t>(batch.block_tables.size()) > limits_.max_rows) {
      return InternalError("a step of %d rows and %d outputs does not fit the limits of %d and %d",
                           rows, batch.output_rows.size(), limits_.max_rows, limits_.max_outputs);
    }
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t position = batch.positions[row];
      const auto sequence = static_cast<size_t>(batch.sequences[row]);
      const bool inside =
          batch.tokens[row] >= 0 && batch.tokens[row] < config_.vocab_size && position >= 0 &&
          position < limits_.max_model_len && sequence < batch.block_tables.size() &&
          static_cast<size_t>(position / kBlockTokens) < batch.block_tables[sequence].size();
      if (!inside)
        return InternalError("row %d of a step has a token, position or sequence out of range",
                             row);
    }
    for (const auto& table : batch.block_tables) {
      for (const int32_t block : table) {
        if (block < 0 || block >= limits_.kv_blocks)
          return InternalError("KV block %d is out of range", block);
      }
    }
    for (const int32_t row : batch.output_rows) {
      if (row < 0 || row >= rows) return InternalError("output row %d is out of range", row);
    }
    return OkStatus();
  }

  // Keys (or values) of one layer.
  int64_t PageElements() const {
    return limits_.kv_blocks * shape_.kv_heads.size() * kBlockTokens * config_.head_dim;
  }

  ModelConfig config_;
  ModelLimits limits_;
  LocalShape shape_;
  Weights weights_;
  Group& group_;
  const kernels::Backend& ops_;
  kernels::Queue queue_;
  MemoryPlan memory_;
  uint64_t bytes_read_ = 0;
  Buffer kv_;  // [layers][keys, values][blocks][K][kBlockTokens][d]
  Buffer storage_;
  Scratch scratch_;
  kernels::AttentionArgs attention_;
  kernels::RouterArgs router_;
  uint64_t digest_ = 0;
};

}  // namespace

StatusOr<std::unique_ptr<Model>> LoadGlm4Moe(ModelConfig config, const Checkpoint& checkpoint,
                                             const LoadOptions& options, const ModelPlace& place) {
  const Cuts cuts = CutModel(config, options.shares);
  const int rank = place.group.rank();
  const LocalShape shape = ShapeOf(config, cuts, rank);
  const int threads = place.pool.count();
  const MemoryPlan plan = PlanMemory(config, options.limits, options.shares, rank, 2, threads);
  SliceLoader loader(checkpoint, place.group, options.shares, [&](uint64_t bytes) {
    if (options.progress) options.progress(LoadProgress{bytes, plan.weight_bytes});
  });
  LOCKSTEP_ASSIGN_OR_RETURN(Weights weights, LoadWeights(config, cuts, loader, place.backend));
  auto model = std::make_unique<Glm4Moe>(std::move(config), options.limits, shape,
                                         std::move(weights), place);
  LOCKSTEP_RETURN_IF_ERROR(model->Allocate(plan, loader.bytes_read()));
  return model;
}

}  // namespace lockstep
