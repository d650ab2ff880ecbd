// The tensor-parallel executor: rank 0 broadcasts the plan, every rank computes its share of the
// same step and samples the same tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "collectives/rank_meter.h"
#include "runtime/base/status.h"
#include "runtime/decode/sampler.h"
#include "runtime/engine/executor.h"
#include "runtime/engine/sequence_table.h"
#include "runtime/model/model.h"

namespace lockstep {

class TensorParallelExecutor final : public Executor {
 public:
  // Collective: all ranks of `group` create theirs together. `rank_names` name the ranks in errors.
  // `group` and `model` must outlive it. `slice` is the vocabulary range whose logits this rank's
  // model gives. `meter` counts the decode steps (null: nothing does); it outlives the executor,
  // and the exchanges of `group` count in it. `constraints` (null: sequences have none) outlives it
  // too.
  static StatusOr<std::unique_ptr<TensorParallelExecutor>> Create(
      Model& model, Group& group, VocabSlice slice, std::vector<std::string> rank_names,
      RankMeter* meter = nullptr, TokenConstraints* constraints = nullptr);

  // Rank 0.
  Status Execute(const StepPlan& plan, StepOutcome* outcome) override;
  StatusOr<std::vector<uint64_t>> Stop(uint64_t step, ErrorKind reason) override;

  // Ranks 1..: computes plans until the stop plan. OK after an orderly stop, "interrupted" if that
  // was the reason, otherwise why this rank could not go on (the others have been told).
  Status RunWorker();

  int64_t rows_gathered_whole() const { return sampler_.rows_gathered_whole(); }

 private:
  TensorParallelExecutor(Model& model, Group& group, std::vector<VocabSlice> slices,
                         std::vector<std::string> rank_names, RankMeter* meter,
                         TokenConstraints* constraints);
  // The model's part of a step, measured.
  StatusOr<StepOutput> StepModel(int64_t* compute_ns);
  // Every rank: one step. `outcome` is filled on rank 0 only and may be null elsewhere.
  Status RunStep(const StepPlan& plan, uint64_t plan_digest, StepOutcome* outcome);
  Status Sample(const StepPlan& plan, const StepOutput& output, uint64_t digest,
                StepOutcome* outcome);
  Status GatherRaw(const StepOutput& output, StepOutcome* outcome);
  Status DraftRaw(const StepOutput& output, StepOutcome* outcome);
  // Sends rows of every rank's output, with `dim` values of the hidden states, to rank 0.
  Status GatherRows(const StepOutput& output, const std::vector<size_t>& rows, size_t dim,
                    std::vector<float>* logits, std::vector<std::vector<float>>* hidden);
  StatusOr<std::vector<uint64_t>> GatherDigests();
  Status Fail(const Status& status);

  Model& model_;
  Group& group_;
  RankMeter* const meter_;
  std::vector<VocabSlice> slices_;
  SequenceTable table_;
  TokenSampler sampler_;
  uint64_t model_digest_ = 0;  // over StepOutput::digest of all steps
  uint64_t token_digest_ = 0;  // over all sampled tokens
  std::vector<std::byte> message_;
  std::vector<SamplingRow> rows_;
  std::vector<SampledToken> tokens_;
  std::vector<float> packed_;
};

}  // namespace lockstep
