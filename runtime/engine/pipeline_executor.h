// The pipeline executor, the twin of the tensor-parallel one: rank 0 broadcasts the plan, every
// stage computes its layers of the same rows in turn, and the last one samples. Plans in, tokens
// out, and the same tokens.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/decode/sampler.h"
#include "runtime/engine/group_executor.h"
#include "runtime/engine/pipeline.h"
#include "runtime/engine/sequence_table.h"
#include "runtime/engine/stage_link.h"
#include "runtime/engine/step_end.h"
#include "runtime/model/model.h"

namespace lockstep {

struct PipelineSetup {
  PipelineOptions pipeline;
  int64_t plan_rows = 0;  // of one step, at most; the model's limits are those of a micro-batch
  VocabSlice slice;       // that this rank holds of the vocabulary; empty but at the last stage
  std::vector<std::string> names;  // of all ranks
  TokenConstraints* constraints = nullptr;
};

class PipelineExecutor final : public GroupExecutor {
 public:
  // Collective: all ranks of `group` create theirs together. `stage_group` has the ranks that hold
  // the same layers, as many in each stage. What the setup points to, the model and the groups
  // outlive it.
  static StatusOr<std::unique_ptr<PipelineExecutor>> Create(Model& model, Group& group,
                                                            Group& stage_group,
                                                            std::unique_ptr<StageLink> link,
                                                            PipelineSetup setup);

  Status Execute(const StepPlan& plan, StepOutcome* outcome) override;

 protected:
  Status RunStep(const StepPlan& plan, uint64_t plan_digest, StepOutcome* outcome) override;
  // Rank 0 logs which part of the steps' time each stage computed.
  Status End() override;

 private:
  PipelineExecutor(Model& model, Group& group, Group& stage_group, std::unique_ptr<StageLink> link,
                   std::vector<VocabSlice> slices, PipelineSetup setup);
  // The tokens of the step before, which the plan brings.
  Status TakeSampled(const std::vector<int32_t>& sampled);
  Status EndAtLastStage(uint64_t step, const StepOutput& output, Range outputs,
                        StepOutcome* outcome);
  Status FinishStep(const StepPlan& plan, const StepOutcome& found, StepOutcome* outcome);
  OutcomeShape ShapeOfOutcome() const;

  Model& model_;
  Group& stage_group_;
  const std::unique_ptr<StageLink> link_;
  const PipelineSetup setup_;
  Pipeline pipeline_;
  SequenceTable table_;
  StepEnd end_;
  uint64_t plan_digest_ = 0;
  std::vector<int32_t> sampled_slots_;  // of the last step
  std::vector<int32_t> sampled_;        // their tokens, where they are known yet
  std::vector<std::byte> message_;
};

}  // namespace lockstep
