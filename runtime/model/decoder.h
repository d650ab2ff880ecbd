// The forward pass of one rank, the same for all architectures but for their attention
// (glm4_moe.cc, glm4_moe_lite.cc), and for the draft layer (mtp.cc) up to how it begins.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "runtime/model/architectures.h"
#include "runtime/model/model.h"
#include "runtime/model/partial_sum.h"
#include "runtime/model/scratch.h"
#include "runtime/model/weights.h"

namespace lockstep {

class Decoder : public Model {
 public:
  Decoder(ModelConfig config, const ModelLimits& limits, const LocalShape& shape, Weights weights,
          const ModelPlace& place);

  // Takes the cache and the scratch of `plan`. Once, before the first step.
  Status Allocate(const MemoryPlan& plan, uint64_t bytes_read);

  const ModelConfig& config() const override { return config_; }
  const ModelLimits& limits() const override { return limits_; }
  const MemoryPlan& memory() const override { return memory_; }
  uint64_t bytes_read() const override { return bytes_read_; }
  uint64_t bytes_per_token() const override { return weights_.bytes_per_token; }
  bool has_draft_layer() const override { return weights_.draft.has_value(); }
  void SetWire(WireFormat wire) override { wire_ = wire; }
  StatusOr<StepOutput> Step(const Batch& batch) override;
  // Its pieces, each with the weights that it needs, for whoever has no others in memory
  // (layer_walk.h): the beginning, every layer in order, the end. One batch, which lives until
  // then; collective. `next_norm` is the norm that follows the piece.
  Status BeginStep(const Batch& batch, const kernels::PackedMatrix& embedding,
                   const std::vector<float>& next_norm);
  Status StepLayer(const Batch& batch, size_t index, const Layer& layer,
                   const std::vector<float>& next_norm);
  // Final hidden states and this rank's logits of the wanted rows.
  StepOutput Head(const Batch& batch, const kernels::PackedMatrix& head);
  StatusOr<StepOutput> Draft(const Batch& batch, std::span<const float> hidden) override;

 protected:
  // Where the heads of all layers find their rows.
  virtual void PrepareHeads(const Batch& batch) = 0;
  // normed [R, D] -> partial [R, D]: this rank's heads, through their columns of o_proj. `index` is
  // the layer's place in the cache.
  virtual void Attention(const Layer& layer, size_t index, int64_t rows, float* partial) = 0;

  // Bytes of one layer's cache.
  int64_t CacheBytes() const;

  const ModelConfig config_;
  const ModelLimits limits_;
  const LocalShape shape_;
  const Weights weights_;
  Group& group_;
  const kernels::Backend& ops_;
  kernels::Queue queue_;
  Buffer kv_;  // [layers][CacheBytes()], the draft layer last
  Scratch scratch_;

 private:
  // Batches come from another rank's plan: sizes are checked before anything indexes by them.
  Status CheckBatch(const Batch& batch);
  Status CheckRows(const Batch& batch);
  // That the rows' positions follow those in the draft layer's cache; counts them in.
  Status ContinueDraft(const Batch& batch);
  // What the layers share in this step: where rows stand, their rotations, the router's settings.
  void PrepareRows(const Batch& batch);
  // The tokens' rows of the table, [R, D]; valid until the sum's next Begin.
  StatusOr<const float*> Embed(const kernels::PackedMatrix& table, const Batch& batch,
                               PartialSum* sum);
  // One layer, with its two exchanges: residual and normed [R, D] before it to those behind it.
  // `index` is its place in the cache, `next_norm` the norm that follows it.
  Status RunLayer(const Layer& layer, size_t index, const std::vector<float>& next_norm,
                  int64_t rows, PartialSum* sum);
  // The last layer, behind whose attention only the rows go on whose results are wanted: all of
  // them with a draft layer, else output row i stands in row i of normed.
  Status RunLastLayer(const Layer& layer, const Batch& batch, const std::vector<float>& final_norm,
                      PartialSum* sum);
  // residual += delta; normed = rms_norm(residual).
  void AddAndNorm(const float* delta, const std::vector<float>& norm, int64_t rows);
  // normed [R, D] -> partial [R, D]: this rank's columns of the layer's feed-forward.
  void FeedForwardPart(const Layer& layer, int64_t rows, float* partial);
  void DenseFeedForward(const FeedForward& ffn, int64_t rows, float* partial);
  void MixtureOfExperts(const Mixture& mixture, int64_t rows, float* partial);

  // What a block of the draft layer's cache holds: its first `count` positions, behind those of
  // block `before` (-1: none).
  struct DraftedBlock {
    int32_t before = -1;
    uint64_t before_stamp = 0;  // that the block before had when this one was begun
    int32_t count = 0;
    uint64_t stamp = 0;  // another one whenever positions are written anew
  };

  MemoryPlan memory_;
  std::vector<DraftedBlock> drafted_;    // [kv_blocks] with a draft layer
  uint64_t draft_stamp_ = 0;             // the last one given
  std::vector<int32_t> last_positions_;  // [sequences] of the rows checked so far
  uint64_t bytes_read_ = 0;
  Buffer storage_;
  std::vector<int32_t> last_rows_;  // of RunLastLayer
  kernels::RouterArgs router_;
  WireFormat wire_ = WireFormat::kF32;  // of the sums of the layers
  uint64_t digest_ = 0;
};

}  // namespace lockstep
