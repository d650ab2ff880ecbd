// Products of quantized weights with activations in 8-bit blocks: what one thread does.
//
// For every output, with blocks of 32 inputs added in ascending order:
//
//     y = fma(x.scale, t, y)   where t = w.scale * (sum of w.q * x.q, an exact integer)
//     two scales in a block:   t = fma(w.scale1, sum of the second half, w.scale0 * the first's)
//     with minimum (or bias):  t = fma(w.minimum, sum of x.q, t), per half if there are two
//
// so that the bits depend on neither the instruction set (given fused multiply-add) nor on tiles.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/kernels/product_loop.h"
#include "runtime/tensor/weight_format.h"

namespace lockstep::kernels {

// 32 activations: q = x * (127 / largest magnitude), rounded to nearest even, scale = largest /
// 127. A block whose largest magnitude is below 1e-30 is zero.
struct ActivationBlock {
  int8_t q[kBlockWeights];
  float scale;
  float sum;  // of q
  // What the integer sums start with, since kernels take codes as they are stored: minus the code
  // of zero times the sum of q, of the block or of its halves. q2_k has the halves' sums instead.
  union {
    int32_t start[2];
    float half_sums[2];
  };
};
static_assert(sizeof(ActivationBlock) == 48);

struct QuantizedPart {
  WeightFormat format;
  int64_t phase = 0;
  int64_t blocks = 0;        // inputs / 32
  uint64_t panel_bytes = 0;  // of sixteen outputs (interleave.h)
  const std::byte* panels = nullptr;
  const std::byte* last_panel = nullptr;  // of outputs % 16 outputs, if there are such
  int64_t outputs = 0;
  int64_t panel_begin = 0, panel_end = 0;
  const float* bias = nullptr;
  const ActivationBlock* x = nullptr;  // [.., blocks]
  const int32_t* row_of = nullptr;     // x row of assignment a; nullptr: a - x_first
  int64_t x_first = 0;
  int64_t row_begin = 0, row_end = 0;  // assignments
  float* y = nullptr;
  int64_t y_stride = 0;
};

struct QuantizedKernels {
  const char* name;  // "avx512vnni"
  void (*quantize)(const WeightFormat& format, const float* x, int64_t blocks, ActivationBlock* to);
  void (*matmul)(const QuantizedPart& part);
  ProductLoop product_loop;
};

// nullptr where this build or this processor does not have the set.
const QuantizedKernels* Avx512VnniQuantized();
const QuantizedKernels* Avx512Quantized();
const QuantizedKernels* Avx2Quantized();
const QuantizedKernels* NeonI8mmQuantized();
const QuantizedKernels* NeonDotQuantized();
const QuantizedKernels* BaselineQuantized();

}  // namespace lockstep::kernels
