// How a matrix lies in the memory of a device: rows of the portable layout
// (runtime/tensor/weight_format.h) with the same planes, of which each begins at a multiple of 16
// bytes, and with whole blocks at the end (what is missing in the last one is zero).
//
// Codes are for warps whose lane i takes block i of 32 neighbouring blocks: the words of those
// blocks lie piece by piece, so that each load of a warp reads neighbouring bytes. A block's words
// are parted into pieces of four; of what is left, two and then one are pieces of their own. For
// every 32 blocks (fewer at the end of a row) come the first pieces of all, then the second ones.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/tensor/weight_format.h"

namespace lockstep::kernels::cuda {

// One matrix, or a stack: what kernels get. Offsets are in a row.
struct PackedRows {
  const std::byte* data = nullptr;  // [count][outputs] rows
  int64_t outputs = 0;
  int64_t row_bytes = 0;
  int64_t inner_at = 0, codes_at = 0;
  int32_t inputs = 0;
  int32_t blocks = 0;        // of 32 inputs
  int32_t group_blocks = 1;  // that share an outer entry
  int32_t phase = 0;
  DType scale_type = DType::kF32;  // MLX
};

// Everything but `data`. inputs are fewer than 2^31.
PackedRows LayoutOnDevice(const WeightFormat& format, int64_t outputs, int64_t inputs,
                          int64_t phase);

// One portable row into `to`, of `layout.row_bytes` bytes.
void PackRow(const WeightFormat& format, const PackedRows& layout, const std::byte* row,
             std::byte* to);

}  // namespace lockstep::kernels::cuda
