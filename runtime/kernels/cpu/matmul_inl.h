// Matrix products as dot products in sixteen lanes. A tile keeps kRows x kOutputs sums in
// registers; whichever tile a row falls into, its sum over the inputs runs in the same order, so
// tiles change the speed and never the bits.
#pragma once

#include "runtime/kernels/cpu/kernel_table.h"
#include "runtime/kernels/cpu/lanes.h"

namespace lockstep::kernels {
namespace {

// Rows whose activations stay in the second-level cache while the weights pass by.
constexpr int64_t kRowBlock = 32;

template <typename Weight, int kRows, int kOutputs>
void Tile(const MatMulPart& part, int64_t row, int64_t output) {
  const Weight* w[kOutputs];
  const float* x[kRows];
  for (int n = 0; n < kOutputs; ++n) {
    w[n] = static_cast<const Weight*>(part.weights) + (output + n) * part.inputs;
  }
  for (int r = 0; r < kRows; ++r) {
    x[r] = part.x + (part.row_of != nullptr ? part.row_of[row + r] : row + r) * part.inputs;
  }
  F32x16 sums[kRows][kOutputs];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kOutputs; ++n) sums[r][n] = Splat(0);
  }
  int64_t k = 0;
  for (; k + kLanes <= part.inputs; k += kLanes) {
    F32x16 lanes[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) lanes[r] = Load(x[r] + k);
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; ++n) {
      const F32x16 weight = LoadWide(w[n] + k);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[r][n] = MulAdd(lanes[r], weight, sums[r][n]);
    }
  }
  if (k < part.inputs) {
    // Weights may be read past the row's end (the matrix has spare bytes): zeros in x cancel them.
    for (int r = 0; r < kRows; ++r) {
      const F32x16 rest = LoadPart(x[r] + k, part.inputs - k);
      for (int n = 0; n < kOutputs; ++n) sums[r][n] = MulAdd(rest, LoadWide(w[n] + k), sums[r][n]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kOutputs; ++n) {
      part.y[(row + r) * part.y_stride + output + n] =
          SumLanes(sums[r][n]) + (part.bias != nullptr ? part.bias[output + n] : 0.0f);
    }
  }
}

template <typename Weight, int kRows, int kOutputs>
void Strip(const MatMulPart& part, int64_t row, int64_t output, int64_t output_end) {
  for (; output + kOutputs <= output_end; output += kOutputs)
    Tile<Weight, kRows, kOutputs>(part, row, output);
  for (; output < output_end; ++output) Tile<Weight, kRows, 1>(part, row, output);
}

// The rows behind the last whole tile, fewer than kRows of them.
template <typename Weight, int kRows>
void RestOfRows(const MatMulPart& part, int64_t row, int64_t rows, int64_t output, int64_t end) {
  if constexpr (kRows > 0) {
    if (rows == kRows) return Strip<Weight, kRows, kTileOutputs>(part, row, output, end);
    RestOfRows<Weight, kRows - 1>(part, row, rows, output, end);
  }
}

template <typename Weight>
void MatMulTyped(const MatMulPart& part) {
  for (int64_t block = part.row_begin; block < part.row_end; block += kRowBlock) {
    const int64_t block_end = block + kRowBlock < part.row_end ? block + kRowBlock : part.row_end;
    if (block_end - block == 1) {
      Strip<Weight, 1, kSingleRowOutputs>(part, block, part.output_begin, part.output_end);
      continue;
    }
    for (int64_t output = part.output_begin; output < part.output_end; output += kTileOutputs) {
      const int64_t end =
          output + kTileOutputs < part.output_end ? output + kTileOutputs : part.output_end;
      int64_t row = block;
      for (; row + kTileRows <= block_end; row += kTileRows) {
        Strip<Weight, kTileRows, kTileOutputs>(part, row, output, end);
      }
      RestOfRows<Weight, kTileRows - 1>(part, row, block_end - row, output, end);
    }
  }
}

void MatMulImpl(const MatMulPart& part) {
  switch (part.type) {
    case DType::kF32:
      return MatMulTyped<float>(part);
    case DType::kF16:
      return MatMulTyped<Half>(part);
    case DType::kBF16:
      return MatMulTyped<Bf16>(part);
  }
}

template <typename Weight>
void WidenTyped(const Weight* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) Store(LoadWide(from + i), to + i);
  if (i < count) StorePart(LoadWide(from + i), to + i, count - i);
}

void WidenImpl(DType type, const void* from, int64_t count, float* to) {
  switch (type) {
    case DType::kF32:
      return WidenTyped(static_cast<const float*>(from), count, to);
    case DType::kF16:
      return WidenTyped(static_cast<const Half*>(from), count, to);
    case DType::kBF16:
      return WidenTyped(static_cast<const Bf16*>(from), count, to);
  }
}

}  // namespace
}  // namespace lockstep::kernels
