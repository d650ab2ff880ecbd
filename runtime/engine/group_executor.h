// What the executors of a group have in common: rank 0 broadcasts plans, and every rank computes
// its part of each until the stop plan.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/engine/executor.h"

namespace lockstep {

class GroupExecutor : public Executor {
 public:
  // Rank 0.
  Status Execute(const StepPlan& plan, StepOutcome* outcome) override;
  StatusOr<std::vector<uint64_t>> Stop(uint64_t step, ErrorKind reason) override;

  // Ranks 1..: computes plans until the stop plan. OK after an orderly stop, "interrupted" if that
  // was the reason, otherwise why this rank could not go on (the others have been told).
  Status RunWorker();
  // True while this rank and the others write their cache to the disk. Any thread.
  virtual bool saving() const { return false; }

 protected:
  // `group` has all ranks and outlives the executor.
  explicit GroupExecutor(Group& group) : group_(group) {}
  // Every rank: one step. `outcome` is filled on rank 0 and null elsewhere. `plan_digest` is over
  // what was broadcast, and so the same on all ranks.
  virtual Status RunStep(const StepPlan& plan, uint64_t plan_digest, StepOutcome* outcome) = 0;
  // The last plan is there: what is left to do on every rank.
  virtual Status End() { return OkStatus(); }

  Group& group_;
  uint64_t model_digest_ = 0;  // over StepOutput::digest of all steps

 private:
  StatusOr<std::vector<uint64_t>> GatherDigests();
  Status Fail(const Status& status);

  std::vector<std::byte> message_;
};

}  // namespace lockstep
