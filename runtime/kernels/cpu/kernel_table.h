// The loops of the CPU backend for one instruction set: what a single thread does with its part of
// an op.
#pragma once

#include <cstdint>
#include <span>

#include "runtime/kernels/backend.h"
#include "runtime/tensor/weight_format.h"

namespace lockstep::kernels {

// y[a * y_stride + n] = bias[n] + x row . weight row n, for a in rows, n in outputs.
struct MatMulPart {
  WeightFormat format;
  int64_t phase = 0;
  uint64_t row_bytes = 0;
  uint64_t codes_at = 0;          // offset of a row's weights behind its scales
  const void* weights = nullptr;  // row 0 of the matrix, in the portable layout
  const float* bias = nullptr;
  int64_t inputs = 0;
  int64_t output_begin = 0, output_end = 0;
  const float* x = nullptr;
  const int32_t* row_of = nullptr;  // x row of assignment a; nullptr: a
  int64_t row_begin = 0, row_end = 0;
  float* y = nullptr;
  int64_t y_stride = 0;
};

struct KernelTable {
  const char* name;  // "avx512"
  void (*matmul)(const MatMulPart& part);
  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t dim, float* y);
  void (*add)(float* x, const float* delta, int64_t count);
  void (*silu_mul)(const float* gate, const float* up, int64_t count, float* out);
  void (*route_row)(const RouterArgs& args, int64_t row);
  // y = sum over top_k slots of weights[s] * (expert_out + slot_of[s] * dim), + shared.
  void (*combine_row)(const float* expert_out, const int32_t* slot_of, const float* weights,
                      const float* shared, int64_t top_k, int64_t dim, float* y);
  ProductLoop product_loop;
};

// nullptr where this build or this processor does not have the set.
const KernelTable* Avx512Kernels();
const KernelTable* Avx2Kernels();
const KernelTable* BaselineKernels();  // SSE2 on x86, NEON on ARM

}  // namespace lockstep::kernels
