// The forward pass of one rank, the same for all architectures but for their attention
// (glm4_moe.cc, glm4_moe_lite.cc), and for the draft layer (mtp.cc) up to how it begins.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "collectives/sum_queue.h"
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
  void SetOverlap(int64_t rows) override;
  // LoadOptions::share_choices; before the first step.
  void ShareChoices();
  StatusOr<StepOutput> Step(const Batch& batch) override;
  // Its pieces, each with the weights that it needs, for whoever has no others in memory
  // (layer_walk.h): the beginning, every layer in order, the end. One batch, which lives until
  // then; collective. `next_norm` is the norm that follows the piece.
  Status BeginStep(const Batch& batch, const kernels::PackedMatrix& embedding,
                   const std::vector<float>& next_norm);
  // The beginning of a later stage: from the rows of the one before.
  Status EnterStage(const Batch& batch, const std::vector<float>& next_norm);
  Status StepLayer(const Batch& batch, size_t index, const Layer& layer,
                   const std::vector<float>& next_norm);
  // What the next stage goes on with.
  StatusOr<StepOutput> LeaveStage(int64_t rows);
  // Final hidden states and this rank's logits of the wanted rows.
  StatusOr<StepOutput> Head(const Batch& batch, const kernels::PackedMatrix& head);
  // Waits for the ops so far: before the host touches what they use, be it weights that are given
  // up behind a piece.
  Status Finish() { return ops_.Finish(queue_); }
  StatusOr<StepOutput> Draft(const Batch& batch, std::span<const float> hidden) override;
  int64_t block_bytes() const override;
  void ReadBlock(int32_t block, int32_t before, std::span<std::byte> to) const override;
  void WriteBlock(int32_t block, int32_t before, std::span<const std::byte> from) override;

 protected:
  // Where the heads of all layers find their rows.
  virtual void PrepareHeads(const Batch& batch) = 0;
  // normed [R, D] -> partial [R, D] for R of the step's rows: this rank's heads, through their
  // columns of o_proj. `index` is the layer's place in the cache. A sequence's rows come in order.
  virtual void Attention(const Layer& layer, size_t index, Range rows, float* partial) = 0;
  // Of how many arrays of pages, equally long, one layer's cache is made.
  virtual int64_t PageArrays() const = 0;

  // Rows of a step's first half, where it has two.
  static int64_t FirstHalf(int64_t rows) { return rows / 2; }
  bool begins_model() const { return shape_.layers.begin == 0; }
  bool ends_model() const { return shape_.layers.end == config_.num_hidden_layers; }
  const float* NormedOf(Range rows) const {
    return scratch_.normed + rows.begin * config_.hidden_size;
  }
  // Turns attention's arguments for all rows of the step into those for `rows`.
  template <typename Args>
  void TakeRows(Range rows, Args* args) const {
    args->rows = rows.size();
    args->positions += rows.begin;
    args->sequences += rows.begin;
    args->cosines += rows.begin * config_.rotary_dim / 2;
    args->sines += rows.begin * config_.rotary_dim / 2;
  }

  // Bytes of one layer's cache.
  int64_t CacheBytes() const;

  const ModelConfig config_;
  const ModelLimits limits_;
  const LocalShape shape_;
  const uint64_t step_bytes_;  // of the matrices that every step reads: all but the experts
  const Weights weights_;
  Group& group_;
  const kernels::Backend& ops_;
  kernels::Queue queue_;
  Buffer kv_;  // [layers of this stage][CacheBytes()], the draft layer last
  Scratch scratch_;

 private:
  // Where the pages of a block lie in kv_, one for each array of each layer.
  std::vector<Range> PagesOf(int32_t block) const;
  // How many positions of a block are in the draft layer's cache, behind all those of `before`.
  int32_t Drafted(int32_t block, int32_t before) const;
  // Batches come from another rank's plan: sizes are checked before anything indexes by them.
  Status CheckBatch(const Batch& batch);
  Status CheckRows(const Batch& batch);
  // The whole of Step and Draft, which end it when it fails.
  StatusOr<StepOutput> RunStep(const Batch& batch);
  StatusOr<StepOutput> RunDraft(const Batch& batch, std::span<const float> hidden);
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
  // All layers but the last, for rows in two halves: while the sum of one half is exchanged, the
  // other half is computed.
  Status RunLayersInHalves(int64_t rows);
  // residual += delta; normed = rms_norm(residual). `delta` [R, D] is of these rows alone.
  void AddAndNorm(const float* delta, const std::vector<float>& norm, Range rows);
  // The router's settings and where its choices of these rows stand; `index` as in RunLayer.
  kernels::RouterArgs RouteOf(const Mixture& mixture, size_t index, Range rows) const;
  kernels::ExpertGroups GroupsOf(size_t index, Range rows) const;
  // normed [R, D] -> the experts that these rows go to, where the layer has some. No exchange is
  // open: rank 0's choices may have to travel.
  Status ChooseExperts(const Layer& layer, size_t index, Range rows);
  // Rank 0's choices and weights in place of this rank's.
  Status TakeChoices(const kernels::RouterArgs& route);
  // normed [R, D] -> partial [R, D]: this rank's columns of the layer's feed-forward, behind
  // ChooseExperts.
  void FeedForwardPart(const Layer& layer, size_t index, Range rows, float* partial);
  void DenseFeedForward(const FeedForward& ffn, Range rows, float* partial);
  void MixtureOfExperts(const Mixture& mixture, size_t index, Range rows, float* partial);
  // What was chosen in this step, into the digest, and the bytes of those experts; when the queue
  // is finished.
  void CountChoices();

  // What the rows of a step, or of its halves, chose in one layer.
  struct LayerChoices {
    Range rows[2];              // empty: nothing yet
    uint64_t expert_bytes = 0;  // of one expert
  };

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
  std::vector<LayerChoices> choices_;     // as the layers stand in the cache
  std::vector<std::byte> rank0_choices_;  // with ShareChoices alone, of the largest step
  WireFormat wire_ = WireFormat::kF32;    // of the sums of the layers
  int64_t overlap_rows_ = 0;              // steps of so many rows run in halves; 0: none
  std::unique_ptr<SumQueue> sums_;        // of the halves; null where none run
  uint64_t digest_ = 0;
  uint64_t expert_bytes_ = 0;  // of the experts that this step read
};

}  // namespace lockstep
