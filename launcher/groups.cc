#include "launcher/groups.h"

#include <algorithm>
#include <span>
#include <utility>

#include "collectives/choose.h"
#include "launcher/timed_group.h"
#include "runtime/model/partial_sum.h"
#include "runtime/model/stages.h"

namespace lockstep {

StatusOr<std::unique_ptr<Group>> PrepareGroup(std::unique_ptr<Group> bare, const Options& options,
                                              Membership& membership) {
  std::unique_ptr<Group> group =
      std::make_unique<TimedGroup>(std::move(bare), &membership.meter().exchanges);
  const bool one_machine = membership.local_size() == std::ssize(membership.ranks());
  // Ranks with latency between them stand for machines, each with cores of its own.
  const bool crowded = one_machine && membership.crowded() && membership.added_latency() == nullptr;
  SumLimits limits = UsualSumLimits(group->size(), crowded);
  if (options.gather_sum_bytes >= 0) limits.gathered_bytes = options.gather_sum_bytes;
  if (options.direct_sum_bytes >= 0) limits.direct_bytes = options.direct_sum_bytes;
  LOCKSTEP_RETURN_IF_ERROR(Broadcast(*group, std::as_writable_bytes(std::span(&limits, 1)), 0));
  group->set_sum_limits(limits);
  if (options.sum_order == "any") group->set_sum_order(SumOrder::kAny);
  return group;
}

size_t StepSlotBytes(const Group& group, const ModelConfig& config, const ModelLimits& limits) {
  return std::max(group.traits().slot_bytes,
                  PartialSum::SlotBytes(limits.max_rows * config.hidden_size));
}

uint64_t ExchangeBytes(const ExchangeQuestion& question, const ModelConfig& config,
                       const ModelLimits& limits) {
  const size_t slot_bytes = StepSlotBytes(question.group, config, limits);
  const Membership& membership = question.membership;
  const uint64_t any_order_bytes = question.options.sum_order == "any" ? slot_bytes : 0;
  if (question.world.stages == 1) return membership.GroupBytes(slot_bytes) + any_order_bytes;
  // The group of all ranks stays as it is: no sum goes over it.
  const int width = question.world.stage_size();
  const uint64_t all = membership.GroupBytes(question.group.traits().slot_bytes);
  const uint64_t stage = width == 1 ? kLoneSlotBytes : membership.GroupBytes(slot_bytes, width);
  return all + stage + (width == 1 ? 0 : any_order_bytes) +
         kStageBuffers * PartialSum::SlotBytes(limits.max_rows * config.hidden_size);
}

}  // namespace lockstep
