#include "runtime/engine/group_executor.h"

#include <span>

#include "runtime/base/check.h"
#include "runtime/base/digest.h"

namespace lockstep {
namespace {

constexpr size_t kPlanLimitBytes = size_t{64} << 20;

}  // namespace

// Whoever cannot go on tells the others at once, so that they stop waiting for it.
Status GroupExecutor::Fail(const Status& status) {
  group_.Abort(status);
  return status;
}

Status GroupExecutor::Execute(const StepPlan& plan, StepOutcome* outcome) {
  LOCKSTEP_CHECK(group_.rank() == 0);
  EncodePlan(plan, &message_);
  if (message_.size() > kPlanLimitBytes)
    return Fail(InternalError("a step plan of %d bytes", message_.size()));
  if (const Status sent = BroadcastMessage(group_, &message_, 0, Patience::kStep, kPlanLimitBytes);
      !sent.ok()) {
    return Fail(sent);
  }
  if (plan.kind != PlanKind::kSave) outcome->Clear();
  if (const Status done = RunStep(plan, Digest64(message_), outcome); !done.ok()) return Fail(done);
  return OkStatus();
}

StatusOr<std::vector<uint64_t>> GroupExecutor::Stop(uint64_t step, ErrorKind reason) {
  StepPlan plan;
  plan.kind = PlanKind::kStop;
  plan.step = step;
  plan.reason = reason;
  EncodePlan(plan, &message_);
  LOCKSTEP_RETURN_IF_ERROR(
      BroadcastMessage(group_, &message_, 0, Patience::kStep, kPlanLimitBytes));
  LOCKSTEP_RETURN_IF_ERROR(End());
  return GatherDigests();
}

Status GroupExecutor::RunWorker() {
  while (true) {
    LOCKSTEP_RETURN_IF_ERROR(
        BroadcastMessage(group_, &message_, 0, Patience::kIdle, kPlanLimitBytes));
    StatusOr<StepPlan> plan = DecodePlan(message_);
    if (!plan.ok()) return Fail(plan.status());
    if (plan->kind == PlanKind::kStop) {
      LOCKSTEP_RETURN_IF_ERROR(End());
      const StatusOr<std::vector<uint64_t>> digests = GatherDigests();
      if (!digests.ok()) return digests.status();
      return plan->reason == ErrorKind::kInterrupted ? InterruptedError() : OkStatus();
    }
    if (const Status done = RunStep(*plan, Digest64(message_), nullptr); !done.ok())
      return Fail(done);
  }
}

StatusOr<std::vector<uint64_t>> GroupExecutor::GatherDigests() {
  std::vector<uint64_t> digests(group_.size());
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group_,
                                     std::as_bytes(std::span<const uint64_t>(&model_digest_, 1)),
                                     std::as_writable_bytes(std::span(digests))));
  return digests;
}

}  // namespace lockstep
