// Products with quantized weights in panels of sixteen outputs. A tile keeps one register of
// sixteen sums for each of its rows and panels: weights are unpacked once for all of its rows,
// activations are spread over the lanes once for all of its panels.
#pragma once

#include <algorithm>

#include "runtime/kernels/cpu/pair_tile_inl.h"
#include "runtime/kernels/cpu/quantized_formats_inl.h"

namespace lockstep::kernels {
namespace {

// Activations that stay in the second-level cache while panels pass by.
constexpr int64_t kActivationBytes = 512 << 10;
// Panels that are read side by side, far apart in memory: one core gets more out of several streams
// than out of one.
constexpr int kStreams = 4;
// How far ahead of use the streams of a tile are fetched, all together, where they are fewer.
constexpr int kPrefetchBytes = 4096;

inline const std::byte* PanelAt(const QuantizedPart& part, int64_t panel) {
  const bool whole = (panel + 1) * static_cast<int64_t>(kLaneCount) <= part.outputs;
  return whole ? part.panels + static_cast<uint64_t>(panel) * part.panel_bytes : part.last_panel;
}

// Where the parts of a panel lie.
struct PanelShape {
  DType scale_type;
  int outer_shift;       // outer entry of block b: (phase + b) >> outer_shift
  uint64_t outer_bytes;  // of one entry, all lanes
  uint64_t blocks_at;
};

template <typename F>
inline PanelShape ShapeOf(const QuantizedPart& part) {
  PanelShape shape{part.format.scale_type, 62, 0, 0};
  const int64_t group = part.format.group_blocks;
  if (group > 0) shape.outer_shift = __builtin_ctzll(static_cast<unsigned long long>(group));
  if (group == 0 || part.blocks == 0) return shape;
  if constexpr (F::kInnerBytes == 0) {  // mlx
    shape.outer_bytes = (shape.scale_type == DType::kF32 ? 8 : 4) * kLaneCount;
  } else {
    shape.outer_bytes = F::kOuterBytes * kLaneCount;
  }
  const int64_t entries = group < 0 ? 1 : (part.phase + part.blocks + group - 1) / group;
  shape.blocks_at = static_cast<uint64_t>(entries) * shape.outer_bytes;
  return shape;
}

inline int32_t XWord(const ActivationBlock& block, int word) {
  int32_t value;
  std::memcpy(&value, block.q + 4 * word, 4);
  return value;
}

// sums[r][p] += words [kBegin, kEnd) of one block of panel p times those of row r. A word of x is
// spread over the lanes once for all panels, a word of a panel is unpacked once for all rows.
template <typename F, int kBegin, int kEnd, int kRows, int kPanels>
inline __attribute__((always_inline)) void DotWords(const std::byte* const (&codes)[kPanels],
                                                    const ActivationBlock* const (&x)[kRows],
                                                    I32x16 (&sums)[kRows][kPanels]) {
  if constexpr (kBegin < kEnd) {
    U32x16 w[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) w[p] = F::Words::template Word<kBegin, EveryLane>(codes[p]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int32_t word = XWord(*x[r], kBegin);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) sums[r][p] = Dot<F::Words::kSigned>(sums[r][p], w[p], word);
    }
    DotWords<F, kBegin + 1, kEnd>(codes, x, sums);
  }
}

#if LOCKSTEP_PAIR_PRODUCTS
// Words whose pairs stay within 16 bits when they are added.
template <typename Words>
constexpr int PairWords() {
  int words = 8;
  while (words > 1 && words * 2 * Words::kLargest * 127 > 32767) words /= 2;
  return words;
}

// pairs[r][p] = the pairs of words [kFirst, kEnd), of which those before kBegin are in it.
template <typename F, int kFirst, int kBegin, int kEnd, int kRows, int kPanels>
inline __attribute__((always_inline)) void AddPairWords(const std::byte* const (&codes)[kPanels],
                                                        const ActivationBlock* const (&x)[kRows],
                                                        I32x16 (&pairs)[kRows][kPanels]) {
  if constexpr (kBegin < kEnd) {
    U32x16 w[kPanels];
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) w[p] = F::Words::template Word<kBegin, EveryLane>(codes[p]);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int32_t word = XWord(*x[r], kBegin);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const I32x16 product = Pairs<F::Words::kSigned>(w[p], word);
        pairs[r][p] = kBegin == kFirst ? product : AddPairs(pairs[r][p], product);
      }
    }
    AddPairWords<F, kFirst, kBegin + 1, kEnd>(codes, x, pairs);
  }
}

// DotWords, widening once for as many words as 16 bits hold.
template <typename F, int kBegin, int kEnd, int kRows, int kPanels>
inline __attribute__((always_inline)) void DotPairWords(const std::byte* const (&codes)[kPanels],
                                                        const ActivationBlock* const (&x)[kRows],
                                                        I32x16 (&sums)[kRows][kPanels]) {
  if constexpr (kBegin < kEnd) {
    constexpr int kNext = std::min(kBegin + PairWords<typename F::Words>(), kEnd);
    I32x16 pairs[kRows][kPanels];
    AddPairWords<F, kBegin, kBegin, kNext>(codes, x, pairs);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) sums[r][p] = WidenPairs(sums[r][p], pairs[r][p]);
    }
    DotPairWords<F, kNext, kEnd>(codes, x, sums);
  }
}
#endif

// The integer sums of words [kBegin, kEnd), begun with the rows' starts for that part.
template <typename F, int kBegin, int kEnd, int kRows, int kPanels>
inline __attribute__((always_inline)) void SumWords(const std::byte* const (&codes)[kPanels],
                                                    const ActivationBlock* const (&x)[kRows],
                                                    I32x16 (&sums)[kRows][kPanels]) {
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p)
      sums[r][p] = SplatInt(F::kZero != 0 ? x[r]->start[kBegin / 4] : 0);
  }
#if LOCKSTEP_PAIR_PRODUCTS
  DotPairWords<F, kBegin, kEnd>(codes, x, sums);
#else
  DotWords<F, kBegin, kEnd>(codes, x, sums);
#endif
}

// One block of kPanels panels: y[r][p] += x[r] . w[p].
template <typename F, int kRows, int kPanels>
inline __attribute__((always_inline)) void AddBlock(DType scale_type,
                                                    const std::byte* const (&outer)[kPanels],
                                                    const std::byte* const (&inner)[kPanels],
                                                    const ActivationBlock* const (&x)[kRows],
                                                    F32x16 (&y)[kRows][kPanels]) {
  const std::byte* codes[kPanels];
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) codes[p] = inner[p] + F::kInnerBytes * kLaneCount;
  I32x16 sums[kRows][kPanels], second[kRows][kPanels];
  SumWords<F, 0, F::kTwo ? 4 : 8>(codes, x, sums);
  if constexpr (F::kTwo) SumWords<F, 4, 8>(codes, x, second);
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
    BlockScales scales;
    F::Load(scale_type, outer[p], inner[p], &scales);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      F32x16 t = scales.scale[0] * ToFloat(sums[r][p]);
      if constexpr (F::kTwo) t = Fused(scales.scale[1], ToFloat(second[r][p]), t);
      if constexpr (F::kMinimum && F::kTwo) {
        t = Fused(scales.minimum[0], Splat(x[r]->half_sums[0]), t);
        t = Fused(scales.minimum[1], Splat(x[r]->half_sums[1]), t);
      } else if constexpr (F::kMinimum) {
        t = Fused(scales.minimum[0], Splat(x[r]->sum), t);
      }
      y[r][p] = Fused(Splat(x[r]->scale), t, y[r][p]);
    }
  }
}

inline const ActivationBlock* RowAt(const QuantizedPart& part, int64_t assignment) {
  const int64_t row = part.row_of != nullptr ? part.row_of[assignment] : assignment - part.x_first;
  return part.x + row * part.blocks;
}

inline void StoreOutputs(const QuantizedPart& part, int64_t assignment, int64_t panel,
                         F32x16 sums) {
  const int64_t output = panel * static_cast<int64_t>(kLaneCount);
  const int64_t width = part.outputs - output < kLanes ? part.outputs - output : kLanes;
  float* y = part.y + assignment * part.y_stride + output;
  if (part.bias != nullptr) sums = sums + LoadPart(part.bias + output, width);
  if (width == kLanes) {
    Store(sums, y);
  } else {
    StorePart(sums, y, width);
  }
}

// `rows` <= kRows rows of kPanels panels that lie `apart` panels from each other; the rows that are
// missing repeat the last one.
template <typename F, int kRows, int kPanels>
void PanelTile(const QuantizedPart& part, const PanelShape& shape, int64_t row, int64_t rows,
               int64_t panel, int64_t apart) {
  constexpr uint64_t kBlockBytes = (F::kInnerBytes + F::kCodeBytes) * kLaneCount;
  const ActivationBlock* x[kRows];
  F32x16 y[kRows][kPanels];
  const std::byte *start[kPanels], *outer[kPanels], *inner[kPanels];
  for (int r = 0; r < kRows; ++r) x[r] = RowAt(part, row + (r < rows ? r : rows - 1));
  for (int p = 0; p < kPanels; ++p) {
    start[p] = PanelAt(part, panel + p * apart);
    inner[p] = start[p] + shape.blocks_at;
    for (int r = 0; r < kRows; ++r) y[r][p] = Splat(0);
  }
  for (int64_t block = 0; block < part.blocks; ++block) {
    const uint64_t entry =
        static_cast<uint64_t>((part.phase + block) >> shape.outer_shift) * shape.outer_bytes;
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      for (uint64_t line = 0; kPanels < kStreams && line < kBlockBytes; line += 64)
        __builtin_prefetch(inner[p] + kPrefetchBytes / kPanels + line);
      outer[p] = start[p] + entry;
    }
    if constexpr (kByPairs<kRows>) {
      PairTile<F, kRows>::AddBlock(shape.scale_type, outer[0], inner[0], x, y);
    } else {
      AddBlock<F, kRows, kPanels>(shape.scale_type, outer, inner, x, y);
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) inner[p] += kBlockBytes;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) ++x[r];
  }
  if constexpr (kByPairs<kRows>) PairTile<F, kRows>::Untangle(y);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      if (r < rows) StoreOutputs(part, row + r, panel + p * apart, y[r][p]);
    }
  }
}

// Panels of a tile of `rows` rows: as many as leave all sums in registers. One row takes all
// streams, wherever sums stay, since nothing but memory holds it up.
template <typename F>
constexpr int TilePanels(int rows) {
  if (rows == 1) return kStreams;
  if (kParts > 1) return 1;
  if (rows <= (F::kTwo ? 2 : 3)) return kStreams;
  return rows <= 4 || !F::kTwo ? 2 : 1;
}

// kRows rows of kStreams panels.
template <typename F, int kRows>
void StreamTile(const QuantizedPart& part, const PanelShape& shape, int64_t row, int64_t panel,
                int64_t apart) {
  constexpr int kPanels = TilePanels<F>(kRows);
  constexpr int kTileOf = kByPairs<kRows> ? kRows + kRows % 2 : kRows;
  for (int p = 0; p < kStreams; p += kPanels)
    PanelTile<F, kTileOf, kPanels>(part, shape, row, kRows, panel + p * apart, apart);
}

// All rows of kStreams panels.
template <typename F>
void RowsOfPanels(const QuantizedPart& part, const PanelShape& shape, int64_t row, int64_t end,
                  int64_t panel, int64_t apart) {
  for (; row + kQuantizedTileRows <= end; row += kQuantizedTileRows)
    StreamTile<F, kQuantizedTileRows>(part, shape, row, panel, apart);
  const int64_t rest = end - row;
  if constexpr (kQuantizedTileRows > 4) {
    if (rest == 7) return StreamTile<F, 7>(part, shape, row, panel, apart);
    if (rest == 6) return StreamTile<F, 6>(part, shape, row, panel, apart);
    if (rest == 5) return StreamTile<F, 5>(part, shape, row, panel, apart);
    if (rest == 4) return StreamTile<F, 4>(part, shape, row, panel, apart);
  }
  if (rest == 3) return StreamTile<F, 3>(part, shape, row, panel, apart);
  if (rest == 2) return StreamTile<F, 2>(part, shape, row, panel, apart);
  if (rest == 1) return StreamTile<F, 1>(part, shape, row, panel, apart);
}

// All rows of one panel: of those that are left over, few of many.
template <typename F>
void RowsOfPanel(const QuantizedPart& part, const PanelShape& shape, int64_t row, int64_t end,
                 int64_t panel) {
  for (; row < end; row += kQuantizedTileRows) {
    const int64_t rest = end - row < kQuantizedTileRows ? end - row : kQuantizedTileRows;
    if (rest > 2) {
      PanelTile<F, kQuantizedTileRows, 1>(part, shape, row, rest, panel, 0);
    } else {
      PanelTile<F, 2, 1>(part, shape, row, rest, panel, 0);
    }
  }
}

template <typename F>
void MatMulPanels(const QuantizedPart& part) {
  const PanelShape shape = ShapeOf<F>(part);
  const int64_t row_bytes = part.blocks * static_cast<int64_t>(sizeof(ActivationBlock)) + 1;
  int64_t step = kActivationBytes / row_bytes / kQuantizedTileRows * kQuantizedTileRows;
  if (step < kQuantizedTileRows) step = kQuantizedTileRows;
  const int64_t apart = (part.panel_end - part.panel_begin) / kStreams;
  for (int64_t row = part.row_begin; row < part.row_end; row += step) {
    const int64_t end = row + step < part.row_end ? row + step : part.row_end;
    for (int64_t panel = 0; panel < apart; ++panel)
      RowsOfPanels<F>(part, shape, row, end, part.panel_begin + panel, apart);
    for (int64_t panel = part.panel_begin + apart * kStreams; panel < part.panel_end; ++panel)
      RowsOfPanel<F>(part, shape, row, end, panel);
  }
}

void MatMulQuantizedImpl(const QuantizedPart& part) {
  WithFormat(part.format, [&](auto format) { MatMulPanels<decltype(format)>(part); });
}

// Half of the rule of ActivationBlock: 16 values to integers; returns their sum.
inline int32_t QuantizeHalf(const F32x16& x, float factor, int8_t* q) {
  // 1.5 * 2^23: the sum's last bits are the integer, rounded to nearest even. Fused, so that the
  // product is not rounded before.
  const F32x16 shifted = Fused(x, Splat(factor), Splat(12582912.0f));
  const I32x16 integers =
      MapAs<I32x16>([](NativeF32 a) { return ((NativeI32)a << 24) >> 24; }, shifted);
  StoreBytes(integers, q);
  return SumInts(integers);
}

inline void QuantizeBlock(const float* x, int32_t zero, bool half_sums, ActivationBlock* to) {
  const F32x16 low = Load(x), high = Load(x + kLanes);
  // Magnitudes compare like their bits, and infinity and NaN are above all numbers.
  const int32_t bits = MaxInts(MagnitudeBits(low), MagnitudeBits(high));
  float largest;
  std::memcpy(&largest, &bits, sizeof(largest));
  const bool tiny = largest < 1e-30f;
  const bool number = bits < 0x7f800000;
  const float factor = tiny || !number ? 0.0f : 127.0f / largest;
  const int32_t sums[2] = {QuantizeHalf(low, factor, to->q),
                           QuantizeHalf(high, factor, to->q + kLanes)};
  // Integers would hide what is not a number; the scale does not.
  to->scale = tiny ? 0.0f : number ? largest / 127.0f : __builtin_nanf("");
  to->sum = static_cast<float>(sums[0] + sums[1]);
  for (int half = 0; half < 2; ++half) {
    if (half_sums) {
      to->half_sums[half] = static_cast<float>(sums[half]);
    } else {
      to->start[half] = -zero * sums[half];
    }
  }
}

void QuantizeImpl(const WeightFormat& format, const float* x, int64_t blocks, ActivationBlock* to) {
  WithFormat(format, [&](auto f) {
    using F = decltype(f);
    for (int64_t block = 0; block < blocks; ++block) {
      QuantizeBlock(x + block * kBlockWeights, F::kZero, F::kTwo && F::kMinimum, to + block);
      // Formats with one scale start one sum, over the whole block.
      if (!F::kTwo) to[block].start[0] += to[block].start[1];
    }
  });
}

void RepeatBytes(int64_t rounds) {
  RepeatProduct<NativeI32, NativeU32, NativeI32>(rounds, BytesProduct);
}

constexpr QuantizedKernels MakeQuantized(const char* name) {
  constexpr int64_t kOperations = kLoopSums * kWidth * 4 * 2 * (kRowPairs ? 2 : 1);
  return QuantizedKernels{
      name, QuantizeImpl, MatMulQuantizedImpl, {kBytesInstruction, RepeatBytes, kOperations}};
}

}  // namespace
}  // namespace lockstep::kernels
