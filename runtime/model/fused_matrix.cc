#include "runtime/model/fused_matrix.h"

namespace lockstep {

int64_t FusedMatrix::outputs() const {
  int64_t sum = 0;
  for (const PackedPtr& part : parts) sum += part->outputs();
  return sum;
}

void FusedMatrix::MatMul(const kernels::Backend& ops, kernels::Queue& queue, const float* bias,
                         const float* x, int64_t rows, float* y) const {
  const int64_t stride = outputs();
  for (const PackedPtr& part : parts) {
    ops.MatMul(queue, *part, bias, x, rows, y, stride);
    y += part->outputs();
    if (bias != nullptr) bias += part->outputs();
  }
}

void FusedMatrix::GroupedMatMul(const kernels::Backend& ops, kernels::Queue& queue,
                                const kernels::ExpertGroups& groups, const float* x, bool by_row,
                                float* y) const {
  const int64_t stride = outputs();
  for (const PackedPtr& part : parts) {
    ops.GroupedMatMul(queue, *part, groups, x, by_row, y, stride);
    y += part->outputs();
  }
}

}  // namespace lockstep
