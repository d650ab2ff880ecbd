// The layout of quantized weights that the 8-bit kernels read: panels of sixteen outputs, so that
// one vector lane belongs to one output and no sum ever crosses lanes.
//
// A panel holds sixteen portable rows (runtime/tensor/weight_format.h) and has their size:
//
//     outer   per group: the first number of all sixteen outputs, then the second, if there is one
//     blocks  per block of 32 inputs: the inner scales likewise, then the codes as 32-bit words,
//             word i of all sixteen outputs, then word i + 1
//
// The words are those of the portable layout, but for a plane of single bits (bit i of byte b
// belongs to weight 4 i + b, so that one shift and one mask serve four weights) and for MLX, whose
// bit strings become the words of q2_k, q3_k, q4_k, q5_k, q6_k or q8_0; 8-bit codes are stored
// minus 128.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/tensor/weight_format.h"

namespace lockstep::kernels {

inline constexpr int64_t kPanelOutputs = 16;

// Whether the 8-bit kernels know the format.
bool HasPanels(const WeightFormat& format);

// Turns sixteen portable rows into a panel of the same size. The two do not overlap.
void Interleave(const WeightFormat& format, int64_t inputs, int64_t phase, const std::byte* rows,
                std::byte* panel);

// Output `lane` of a panel as float32: the values of DecodeRow.
void DecodePanelRow(const WeightFormat& format, int64_t inputs, int64_t phase,
                    const std::byte* panel, int64_t lane, float* out);

}  // namespace lockstep::kernels
