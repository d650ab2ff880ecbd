// The tensor-parallel executor: rank 0 broadcasts the plan, every rank computes its share of the
// same step and samples the same tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "collectives/rank_meter.h"
#include "runtime/base/status.h"
#include "runtime/decode/sampler.h"
#include "runtime/engine/group_executor.h"
#include "runtime/engine/kept_cache.h"
#include "runtime/engine/sequence_table.h"
#include "runtime/engine/step_end.h"
#include "runtime/model/model.h"

namespace lockstep {

class TensorParallelExecutor final : public GroupExecutor {
 public:
  // Collective: all ranks of `group` create theirs together. `rank_names` name the ranks in errors.
  // `group` and `model` must outlive it. `slice` is the vocabulary range whose logits this rank's
  // model gives. `meter` counts the decode steps (null: nothing does); it outlives the executor,
  // and the exchanges of `group` count in it. `constraints` (null: sequences have none) outlives it
  // too. `kept` (null: none) keeps the cache over restarts where rank 0 and all others have one:
  // it is restored here.
  static StatusOr<std::unique_ptr<TensorParallelExecutor>> Create(
      Model& model, Group& group, VocabSlice slice, std::vector<std::string> rank_names,
      RankMeter* meter = nullptr, TokenConstraints* constraints = nullptr,
      std::unique_ptr<KeptCache> kept = nullptr);

  bool keeps_cache() const override { return kept_ != nullptr; }
  std::span<const ChainedBlock> restored() const override { return restored_; }
  bool saving() const override { return kept_ != nullptr && kept_->saving(); }
  int64_t rows_gathered_whole() const { return end_.rows_gathered_whole(); }

 protected:
  Status RunStep(const StepPlan& plan, uint64_t plan_digest, StepOutcome* outcome) override;

 private:
  TensorParallelExecutor(Model& model, Group& group, std::vector<VocabSlice> slices,
                         std::vector<std::string> rank_names, RankMeter* meter,
                         TokenConstraints* constraints);
  // Takes `kept` if all ranks keep, and what it brings back.
  Status RestoreCache(std::unique_ptr<KeptCache> kept);
  Status SaveCache(const KeptBlocks& blocks);
  // The model's part of a step, measured.
  StatusOr<StepOutput> StepModel(int64_t* compute_ns);
  Status DraftRaw(const StepOutput& output, StepOutcome* outcome);

  Model& model_;
  RankMeter* const meter_;
  const VocabSlice slice_;
  const std::vector<std::string> rank_names_;
  std::unique_ptr<KeptCache> kept_;
  std::vector<ChainedBlock> restored_;
  SequenceTable table_;
  StepEnd end_;
};

}  // namespace lockstep
