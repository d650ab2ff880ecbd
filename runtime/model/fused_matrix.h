// Matrices that read the same activations, side by side as one: query, key and value, or gate and
// up. A checkpoint may keep them in different formats (Q4_K_M has some values in Q6_K), so that
// what is one matrix in the formulas can be several in memory.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "runtime/kernels/backend.h"

namespace lockstep {

using PackedPtr = std::unique_ptr<kernels::PackedMatrix>;

struct FusedMatrix {
  std::vector<PackedPtr> parts;  // equal inputs and counts; at least one

  int64_t outputs() const;
  // y [rows, outputs()] = the products of all parts side by side, as Backend::MatMul.
  void MatMul(const kernels::Backend& ops, kernels::Queue& queue, const float* bias, const float* x,
              int64_t rows, float* y) const;
  // The same as Backend::GroupedMatMul.
  void GroupedMatMul(const kernels::Backend& ops, kernels::Queue& queue,
                     const kernels::ExpertGroups& groups, const float* x, bool by_row,
                     float* y) const;
};

}  // namespace lockstep
