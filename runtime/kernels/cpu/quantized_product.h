// Products with matrices in panels, over the rank's threads: quantizes the rows of x once for all
// threads, into memory that is taken before the first step.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/kernels/backend.h"
#include "runtime/kernels/cpu/cpu_matrix.h"
#include "runtime/kernels/cpu/quantized.h"
#include "runtime/tensor/buffer.h"

namespace lockstep::kernels {

class QuantizedProduct {
 public:
  explicit QuantizedProduct(const QuantizedKernels* kernels) : kernels_(kernels) {}

  const QuantizedKernels& kernels() const { return *kernels_; }

  // What Reserve takes, the most of all calls.
  static uint64_t BytesFor(int64_t inputs);
  // Makes room for rows of `inputs` values. Before the products that need it.
  Status Reserve(int64_t inputs);

  struct Rows {
    const float* x = nullptr;         // [.., inputs]
    const int32_t* row_of = nullptr;  // x row of assignment a; nullptr: a
    float* y = nullptr;               // [assignments, y_stride]
    int64_t y_stride = 0;
  };
  // Backend::MatMul and Backend::GroupedMatMul.
  void MatMul(Queue& queue, const CpuMatrix& weights, const float* bias, const Rows& rows,
              int64_t count);
  void Grouped(Queue& queue, const CpuMatrix& weights, std::span<const RowGroup> groups,
               const Rows& rows);

 private:
  QuantizedPart PartOf(const CpuMatrix& weights, const Rows& rows) const;
  // Quantizes x rows for the assignments [begin, end): each row of x once if they fit (and then
  // row_of indexes them), else one after the other.
  void Quantize(Queue& queue, const Rows& rows, int64_t begin, int64_t end, QuantizedPart* part);

  const QuantizedKernels* kernels_;
  Buffer blocks_;  // ActivationBlocks
};

}  // namespace lockstep::kernels
