#include "runtime/model/partial_sum.h"

#include <span>

namespace lockstep {

size_t PartialSum::SlotBytes(int64_t count) {
  return (static_cast<size_t>(count) * sizeof(float) + 63) / 64 * 64;
}

StatusOr<float*> PartialSum::Begin(int64_t count) {
  count_ = count;
  if (group_.size() == 1) return scratch_;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot,
                            group_.Begin(static_cast<size_t>(count) * sizeof(float)));
  return reinterpret_cast<float*>(slot.data());
}

StatusOr<const float*> PartialSum::Reduce(WireFormat wire) {
  if (group_.size() == 1) return scratch_;
  LOCKSTEP_RETURN_IF_ERROR(ops_.Finish(queue_));
  const std::span<float> sum(scratch_, static_cast<size_t>(count_));
  LOCKSTEP_RETURN_IF_ERROR(SumSlots(group_, sum, wire));
  return scratch_;
}

}  // namespace lockstep
