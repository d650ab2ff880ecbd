// Products with quantized weights in panels of sixteen outputs. A tile keeps one register of
// sixteen sums for each of its rows (and panels); weights are unpacked once for all rows.
#pragma once

#include "runtime/kernels/cpu/quantized_formats_inl.h"

namespace lockstep::kernels {
namespace {

// Activations that stay in the second-level cache while panels pass by.
constexpr int64_t kActivationBytes = 512 << 10;
// Panels that a single row reads side by side, far apart in memory: one core gets more out of
// several streams than out of one.
constexpr int kStreams = 4;
// How far ahead of use a lone stream is fetched.
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

// The integer sums of words [begin, end) of one block, for kRows rows.
template <typename F, int kBegin, int kEnd, int kRows>
inline __attribute__((always_inline)) void DotWords(const std::byte* codes,
                                                    const ActivationBlock* const (&x)[kRows],
                                                    I32x16 (&sums)[kRows]) {
  if constexpr (kBegin < kEnd) {
    const U32x16 w = F::Words::template Word<kBegin>(codes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
      sums[r] = Dot<F::Words::kSigned>(sums[r], w, XWord(*x[r], kBegin));
    DotWords<F, kBegin + 1, kEnd, kRows>(codes, x, sums);
  }
}

// One block of one panel: y[r] += x[r] . w.
template <typename F, int kRows>
inline __attribute__((always_inline)) void AddBlock(DType scale_type, const std::byte* outer,
                                                    const std::byte* inner,
                                                    const ActivationBlock* const (&x)[kRows],
                                                    F32x16 (&y)[kRows]) {
  constexpr bool kStarts = F::kZero != 0;
  const std::byte* codes = inner + F::kInnerBytes * kLaneCount;
  I32x16 sums[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sums[r] = SplatInt(kStarts ? x[r]->start[0] : 0);
  DotWords<F, 0, F::kTwo ? 4 : 8, kRows>(codes, x, sums);
  I32x16 second[kRows];
  if constexpr (F::kTwo) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) second[r] = SplatInt(kStarts ? x[r]->start[1] : 0);
    DotWords<F, 4, 8, kRows>(codes, x, second);
  }
  BlockScales scales;
  F::Load(scale_type, outer, inner, &scales);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    F32x16 t = scales.scale[0] * ToFloat(sums[r]);
    if constexpr (F::kTwo) t = Fused(scales.scale[1], ToFloat(second[r]), t);
    if constexpr (F::kMinimum && F::kTwo) {
      t = Fused(scales.minimum[0], Splat(x[r]->half_sums[0]), t);
      t = Fused(scales.minimum[1], Splat(x[r]->half_sums[1]), t);
    } else if constexpr (F::kMinimum) {
      t = Fused(scales.minimum[0], Splat(x[r]->sum), t);
    }
    y[r] = Fused(Splat(x[r]->scale), t, y[r]);
  }
}

inline const ActivationBlock* RowAt(const QuantizedPart& part, int64_t assignment) {
  const int64_t row = part.row_of != nullptr ? part.row_of[assignment] : assignment - part.x_first;
  return part.x + row * part.blocks;
}

inline void StoreOutputs(const QuantizedPart& part, int64_t assignment, int64_t panel,
                         const F32x16& sums) {
  const int64_t output = panel * static_cast<int64_t>(kLaneCount);
  const int64_t width = part.outputs - output < kLanes ? part.outputs - output : kLanes;
  float* y = part.y + assignment * part.y_stride + output;
  F32x16 out = sums;
  if (part.bias != nullptr) out = out + LoadPart(part.bias + output, width);
  if (width == kLanes) {
    Store(out, y);
  } else {
    StorePart(out, y, width);
  }
}

// `rows` <= kRows rows of one panel; the rows that are missing repeat the last one.
template <typename F, int kRows>
void PanelTile(const QuantizedPart& part, const PanelShape& shape, int64_t row, int64_t rows,
               int64_t panel) {
  constexpr uint64_t kBlockBytes = (F::kInnerBytes + F::kCodeBytes) * kLaneCount;
  const ActivationBlock* x[kRows];
  F32x16 y[kRows];
  for (int r = 0; r < kRows; ++r) {
    x[r] = RowAt(part, row + (r < rows ? r : rows - 1));
    y[r] = Splat(0);
  }
  const std::byte* outer = PanelAt(part, panel);
  const std::byte* inner = outer + shape.blocks_at;
  for (int64_t block = 0; block < part.blocks; ++block) {
    for (uint64_t line = 0; line < kBlockBytes; line += 64)
      __builtin_prefetch(inner + kPrefetchBytes + line);
    const auto entry = static_cast<uint64_t>((part.phase + block) >> shape.outer_shift);
    AddBlock<F, kRows>(shape.scale_type, outer + entry * shape.outer_bytes, inner, x, y);
    inner += kBlockBytes;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) ++x[r];
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    if (r < rows) StoreOutputs(part, row + r, panel, y[r]);
  }
}

// One row of kStreams panels, `apart` panels from each other.
template <typename F>
void StreamTile(const QuantizedPart& part, const PanelShape& shape, int64_t row, int64_t panel,
                int64_t apart) {
  constexpr uint64_t kBlockBytes = (F::kInnerBytes + F::kCodeBytes) * kLaneCount;
  const ActivationBlock* x[1] = {RowAt(part, row)};
  const std::byte* outer[kStreams];
  F32x16 y[kStreams][1];
  for (int s = 0; s < kStreams; ++s) {
    outer[s] = PanelAt(part, panel + s * apart);
    y[s][0] = Splat(0);
  }
  uint64_t at = shape.blocks_at;
  for (int64_t block = 0; block < part.blocks; ++block) {
    const uint64_t entry =
        static_cast<uint64_t>((part.phase + block) >> shape.outer_shift) * shape.outer_bytes;
#pragma GCC unroll 4
    for (int s = 0; s < kStreams; ++s) {
      AddBlock<F, 1>(shape.scale_type, outer[s] + entry, outer[s] + at, x, y[s]);
    }
    at += kBlockBytes;
    ++x[0];
  }
#pragma GCC unroll 4
  for (int s = 0; s < kStreams; ++s) StoreOutputs(part, row, panel + s * apart, y[s][0]);
}

template <typename F>
void SingleRow(const QuantizedPart& part, const PanelShape& shape, int64_t row) {
  const int64_t apart = (part.panel_end - part.panel_begin) / kStreams;
  for (int64_t panel = 0; panel < apart; ++panel)
    StreamTile<F>(part, shape, row, part.panel_begin + panel, apart);
  for (int64_t panel = part.panel_begin + apart * kStreams; panel < part.panel_end; ++panel)
    PanelTile<F, 1>(part, shape, row, 1, panel);
}

template <typename F>
void RowsOfPanel(const QuantizedPart& part, const PanelShape& shape, int64_t row, int64_t end,
                 int64_t panel) {
  for (; row + kQuantizedTileRows <= end; row += kQuantizedTileRows)
    PanelTile<F, kQuantizedTileRows>(part, shape, row, kQuantizedTileRows, panel);
  const int64_t rest = end - row;
  if (rest <= 0) return;
  if constexpr (kQuantizedTileRows > 4) {
    if (rest > 6) return PanelTile<F, 8>(part, shape, row, rest, panel);
    if (rest > 4) return PanelTile<F, 6>(part, shape, row, rest, panel);
  }
  if (rest > 2) return PanelTile<F, 4>(part, shape, row, rest, panel);
  if (rest > 1) return PanelTile<F, 2>(part, shape, row, rest, panel);
  PanelTile<F, 1>(part, shape, row, rest, panel);
}

template <typename F>
void MatMulPanels(const QuantizedPart& part) {
  const PanelShape shape = ShapeOf<F>(part);
  if (part.row_end - part.row_begin == 1) return SingleRow<F>(part, shape, part.row_begin);
  const int64_t row_bytes = part.blocks * static_cast<int64_t>(sizeof(ActivationBlock)) + 1;
  int64_t step = kActivationBytes / row_bytes / kQuantizedTileRows * kQuantizedTileRows;
  if (step < kQuantizedTileRows) step = kQuantizedTileRows;
  for (int64_t row = part.row_begin; row < part.row_end; row += step) {
    const int64_t end = row + step < part.row_end ? row + step : part.row_end;
    for (int64_t panel = part.panel_begin; panel < part.panel_end; ++panel)
      RowsOfPanel<F>(part, shape, row, end, panel);
  }
}

void MatMulQuantizedImpl(const QuantizedPart& part) {
  WithFormat(part.format, [&](auto format) { MatMulPanels<decltype(format)>(part); });
}

// Half of the rule of ActivationBlock: 16 values to integers.
inline void QuantizeHalf(const F32x16& x, float factor, int8_t* q) {
  // 1.5 * 2^23: the sum's last bits are the integer, rounded to nearest even. Fused, so that the
  // product is not rounded before.
  const F32x16 shifted = Fused(x, Splat(factor), Splat(12582912.0f));
  int32_t bits[kLanes];
  std::memcpy(bits, &shifted, sizeof bits);
  for (int i = 0; i < kLanes; ++i) q[i] = static_cast<int8_t>(bits[i]);
}

inline F32x16 Magnitude(const F32x16& x) {
  return Map([](NativeF32 a) { return (NativeF32)((NativeU32)a & 0x7fffffffu); }, x);
}

inline void QuantizeBlock(const float* x, int32_t zero, bool half_sums, ActivationBlock* to) {
  const F32x16 low = Load(x), high = Load(x + kLanes);
  const float largest = MaxLanes(Max(Magnitude(low), Magnitude(high)));
  // NaN and infinity, which comparisons and integers would hide, stay in the scale.
  const float poison = SumLanes(Fused(low, Splat(0), high * 0.0f));
  const bool tiny = largest < 1e-30f;
  const float factor = tiny ? 0.0f : 127.0f / largest;
  QuantizeHalf(low, factor, to->q);
  QuantizeHalf(high, factor, to->q + kLanes);
  int32_t sums[2] = {0, 0};
  for (int i = 0; i < kLanes; ++i) {
    sums[0] += to->q[i];
    sums[1] += to->q[i + kLanes];
  }
  to->scale = (tiny ? 0.0f : largest / 127.0f) + poison;
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

constexpr QuantizedKernels MakeQuantized(const char* name) {
  return QuantizedKernels{name, QuantizeImpl, MatMulQuantizedImpl};
}

}  // namespace
}  // namespace lockstep::kernels
