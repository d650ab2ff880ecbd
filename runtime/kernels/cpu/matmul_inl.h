// Matrix products as dot products in sixteen lanes. A tile keeps kRows x kOutputs sums in
// registers; whichever tile a row falls into, its sum over the inputs runs in the same order, so
// tiles change the speed and never the bits.
#pragma once

#include <type_traits>

#include "runtime/kernels/cpu/exact_inl.h"
#include "runtime/kernels/cpu/kernel_table.h"
#include "runtime/kernels/cpu/lanes.h"

namespace lockstep::kernels {
namespace {

// Rows whose activations stay in the second-level cache while the weights pass by.
constexpr int64_t kRowBlock = 32;

// sums += x . w for the inputs [begin, end). Only a row's end may be no multiple of 16.
template <typename Weight, int kRows, int kOutputs>
inline __attribute__((always_inline)) void AddInputs(const float* const (&x)[kRows],
                                                     const Weight* const (&w)[kOutputs],
                                                     int64_t begin, int64_t end,
                                                     F32x16 (&sums)[kRows][kOutputs]) {
  // A copy that only constants index: compilers keep it in registers.
  F32x16 added[kRows][kOutputs];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; ++n) added[r][n] = sums[r][n];
  }
  int64_t k = begin;
  for (; k + kLanes <= end; k += kLanes) {
    F32x16 lanes[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) lanes[r] = Load(x[r] + k);
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; ++n) {
      const F32x16 weight = LoadWide(w[n] + k);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) added[r][n] = Fused(lanes[r], weight, added[r][n]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; ++n) sums[r][n] = added[r][n];
  }
  if (k < end) {
    // Weights may be read past the row's end (the matrix has spare bytes): zeros in x cancel them.
    for (int r = 0; r < kRows; ++r) {
      const F32x16 rest = LoadPart(x[r] + k, end - k);
      for (int n = 0; n < kOutputs; ++n) sums[r][n] = Fused(rest, LoadWide(w[n] + k), sums[r][n]);
    }
  }
}

// The same for weights with a scale per row or per group of columns: the lanes of a group are
// added first, then scaled once.
template <int kRows, int kOutputs>
inline void AddGroups(const MatMulPart& part, const float* const (&x)[kRows],
                      const std::byte* const (&rows)[kOutputs], F32x16 (&sums)[kRows][kOutputs]) {
  const Fp8* w[kOutputs];
  for (int n = 0; n < kOutputs; ++n) w[n] = reinterpret_cast<const Fp8*>(rows[n] + part.codes_at);
  const int64_t group =
      part.format.group_blocks < 0 ? part.inputs : part.format.group_blocks * kBlockWeights;
  int64_t end = group - part.phase * kBlockWeights;
  int64_t entry = 0;
  for (int64_t begin = 0; begin < part.inputs; begin = end, end += group, ++entry) {
    F32x16 lanes[kRows][kOutputs];
    for (int r = 0; r < kRows; ++r) {
      for (int n = 0; n < kOutputs; ++n) lanes[r][n] = Splat(0);
    }
    AddInputs<Fp8, kRows, kOutputs>(x, w, begin, end < part.inputs ? end : part.inputs, lanes);
    for (int n = 0; n < kOutputs; ++n) {
      float scale;
      std::memcpy(&scale, rows[n] + entry * 4, 4);
      // LoadWide gives a 256th.
      for (int r = 0; r < kRows; ++r)
        sums[r][n] = Fused(lanes[r][n], Splat(scale * 256), sums[r][n]);
    }
  }
}

// Outputs that are `apart` from each other.
template <typename Weight, int kRows, int kOutputs>
void Tile(const MatMulPart& part, int64_t row, int64_t output, int64_t apart) {
  const std::byte* rows[kOutputs];
  const float* x[kRows];
  for (int n = 0; n < kOutputs; ++n) {
    rows[n] = static_cast<const std::byte*>(part.weights) +
              static_cast<uint64_t>(output + n * apart) * part.row_bytes;
  }
  for (int r = 0; r < kRows; ++r) {
    x[r] = part.x + (part.row_of != nullptr ? part.row_of[row + r] : row + r) * part.inputs;
  }
  F32x16 sums[kRows][kOutputs];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kOutputs; ++n) sums[r][n] = Splat(0);
  }
  if constexpr (std::is_same_v<Weight, Fp8>) {
    AddGroups<kRows, kOutputs>(part, x, rows, sums);
  } else {
    const Weight* w[kOutputs];
    for (int n = 0; n < kOutputs; ++n) w[n] = reinterpret_cast<const Weight*>(rows[n]);
    AddInputs<Weight, kRows, kOutputs>(x, w, 0, part.inputs, sums);
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kOutputs; ++n) {
      const int64_t at = output + n * apart;
      part.y[(row + r) * part.y_stride + at] =
          SumLanes(sums[r][n]) + (part.bias != nullptr ? part.bias[at] : 0.0f);
    }
  }
}

template <typename Weight, int kRows, int kOutputs>
void Strip(const MatMulPart& part, int64_t row, int64_t output, int64_t output_end) {
  for (; output + kOutputs <= output_end; output += kOutputs)
    Tile<Weight, kRows, kOutputs>(part, row, output, 1);
  for (; output < output_end; ++output) Tile<Weight, kRows, 1>(part, row, output, 1);
}

// A few rows, all outputs: the weights that are read side by side lie far apart, each in a long
// stream.
template <typename Weight, int kRows, int kOutputs>
void Streams(const MatMulPart& part, int64_t row) {
  const int64_t apart = (part.output_end - part.output_begin) / kOutputs;
  int64_t output = part.output_begin;
  for (; output < part.output_begin + apart; ++output)
    Tile<Weight, kRows, kOutputs>(part, row, output, apart);
  output += (kOutputs - 1) * apart;
  for (; output < part.output_end; ++output) Tile<Weight, kRows, 1>(part, row, output, 1);
}

template <typename Weight, int kRows>
void FewRows(const MatMulPart& part, int64_t row, int64_t rows) {
  if constexpr (kRows > 0) {
    constexpr int kOutputs = kRows == 1 ? kSingleRowOutputs : kTileOutputs;
    if (rows == kRows) return Streams<Weight, kRows, kOutputs>(part, row);
    FewRows<Weight, kRows - 1>(part, row, rows);
  }
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
    if (block_end - block <= kTileRows) {
      FewRows<Weight, kTileRows>(part, block, block_end - block);
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

// Formats that are decoded on the way: for each strip of outputs, pieces of the inputs of this many
// weights are decoded once for all rows of a block. On the stack: 16 KiB of weights, 16 KiB of
// sums.
constexpr int64_t kPiece = 512;
constexpr int kDecodedOutputs = 8;

// sums[n] += row . piece of output n, for `count` inputs.
template <int kOutputs>
inline void AddPiece(const float* x, const float* weights, int64_t count, F32x16* sums) {
  F32x16 lanes[kOutputs];
#pragma GCC unroll 8
  for (int n = 0; n < kOutputs; ++n) lanes[n] = sums[n];
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    const F32x16 value = Load(x + k);
#pragma GCC unroll 8
    for (int n = 0; n < kOutputs; ++n)
      lanes[n] = Fused(value, Load(weights + n * kPiece + k), lanes[n]);
  }
#pragma GCC unroll 8
  for (int n = 0; n < kOutputs; ++n) sums[n] = lanes[n];
  if (k < count) {
    const F32x16 rest = LoadPart(x + k, count - k);
    for (int n = 0; n < kOutputs; ++n)
      sums[n] = Fused(rest, LoadPart(weights + n * kPiece + k, count - k), sums[n]);
  }
}

// Outputs [output, output + outputs) of at most kRowBlock rows; outputs <= kDecodedOutputs.
// `piece(output, first, count, to)` decodes `count` weights of an output.
template <typename Piece>
void DecodedStrip(const MatMulPart& part, int64_t row, int64_t row_end, int64_t output,
                  int64_t outputs, const Piece& piece) {
  alignas(64) float weights[kDecodedOutputs * kPiece];
  alignas(64) F32x16 sums[kRowBlock][kDecodedOutputs];
  const int64_t rows = row_end - row;
  for (int64_t r = 0; r < rows; ++r) {
    for (int n = 0; n < kDecodedOutputs; ++n) sums[r][n] = Splat(0);
  }
  for (int64_t k = 0; k < part.inputs; k += kPiece) {
    const int64_t count = part.inputs - k < kPiece ? part.inputs - k : kPiece;
    for (int64_t n = 0; n < outputs; ++n) {
      piece(output + n, k, count, weights + n * kPiece);
    }
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t from = part.row_of != nullptr ? part.row_of[row + r] : row + r;
      const float* x = part.x + from * part.inputs + k;
      if (outputs == kDecodedOutputs) {
        AddPiece<kDecodedOutputs>(x, weights, count, sums[r]);
      } else {
        for (int64_t n = 0; n < outputs; ++n)
          AddPiece<1>(x, weights + n * kPiece, count, sums[r] + n);
      }
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t n = 0; n < outputs; ++n) {
      part.y[(row + r) * part.y_stride + output + n] =
          SumLanes(sums[r][n]) + (part.bias != nullptr ? part.bias[output + n] : 0.0f);
    }
  }
}

template <typename Piece>
void MatMulDecoded(const MatMulPart& part, const Piece& piece) {
  for (int64_t row = part.row_begin; row < part.row_end; row += kRowBlock) {
    const int64_t row_end = row + kRowBlock < part.row_end ? row + kRowBlock : part.row_end;
    for (int64_t output = part.output_begin; output < part.output_end; output += kDecodedOutputs) {
      const int64_t left = part.output_end - output;
      DecodedStrip(part, row, row_end, output, left < kDecodedOutputs ? left : kDecodedOutputs,
                   piece);
    }
  }
}

void MatMulExact(const MatMulPart& part) {
  const uint64_t inner_at = LayoutOf(part.format, part.inputs, part.phase).inner_at;
  const bool done = WithExactFormat(part.format, [&](auto decoder) {
    using D = decltype(decoder);
    if (part.row_end - part.row_begin == 1) {
      return ExactSingleRow<D>(part, inner_at, part.row_begin);
    }
    MatMulDecoded(part, [&](int64_t output, int64_t first, int64_t count, float* to) {
      ExactPiece<D>(part, inner_at, output, first, count, to);
    });
  });
  if (done) return;
  MatMulDecoded(part, [&](int64_t output, int64_t first, int64_t count, float* to) {
    const std::byte* row = static_cast<const std::byte*>(part.weights) +
                           static_cast<uint64_t>(output) * part.row_bytes;
    DecodeRow(part.format, row, part.inputs, part.phase, first, count, to);
  });
}

void MatMulImpl(const MatMulPart& part) {
  switch (part.format.encoding) {
    case Encoding::kF32:
      return MatMulTyped<float>(part);
    case Encoding::kF16:
      return MatMulTyped<Half>(part);
    case Encoding::kBF16:
      return MatMulTyped<Bf16>(part);
    case Encoding::kFp8:
      return MatMulTyped<Fp8>(part);
    default:
      return MatMulExact(part);
  }
}

}  // namespace
}  // namespace lockstep::kernels
