#include "runtime/model/partial_sum.h"

#include <span>

namespace lockstep {

StatusOr<float*> PartialSum::Begin(int64_t count) {
  count_ = count;
  partial_ = scratch_;
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  if (group_.size() > 1 && bytes <= group_.traits().slot_bytes) {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot, group_.Begin(bytes));
    partial_ = reinterpret_cast<float*>(slot.data());
  }
  return partial_;
}

StatusOr<const float*> PartialSum::Reduce() {
  if (group_.size() == 1) return scratch_;
  const std::span<float> sum(scratch_, static_cast<size_t>(count_));
  const bool in_slot = partial_ != scratch_;
  LOCKSTEP_RETURN_IF_ERROR(in_slot ? SumSlots(group_, sum) : AllReduceSum(group_, sum));
  return scratch_;
}

}  // namespace lockstep
