#include "runtime/model/exchange.h"

#include <algorithm>
#include <cstring>
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
  if (partial_ == scratch_) {
    LOCKSTEP_RETURN_IF_ERROR(
        AllReduceSum(group_, std::span(scratch_, static_cast<size_t>(count_))));
    return scratch_;
  }
  LOCKSTEP_RETURN_IF_ERROR(group_.Publish());
  for (int rank = 0; rank < group_.size(); ++rank) {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::span<const std::byte> slot, group_.Wait(rank));
    const auto* values = reinterpret_cast<const float*>(slot.data());
    if (rank == 0) {
      std::memcpy(scratch_, values, slot.size());
    } else {
      for (int64_t i = 0; i < count_; ++i) scratch_[i] += values[i];
    }
  }
  LOCKSTEP_RETURN_IF_ERROR(group_.End());
  return scratch_;
}

}  // namespace lockstep
