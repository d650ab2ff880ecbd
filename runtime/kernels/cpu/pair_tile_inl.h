// Blocks of a panel times several rows for instruction sets that multiply matrices of bytes (ARM's
// I8MM): one instruction adds eight products to each of four sums, of two rows and two outputs.
//
// So registers of a tile hold 2 x 2 sums while blocks are added, and rows only when all are:
//
//     y[2 i]     lanes 4 k ..: outputs 4 k, 4 k + 1 of row 2 i, then the same of row 2 i + 1
//     y[2 i + 1] lanes 4 k ..: outputs 4 k + 2, 4 k + 3 likewise
//
// Every lane sees the additions of its row and output in the order of AddBlock: equal bits.
#pragma once

#include "runtime/kernels/cpu/quantized_formats_inl.h"

namespace lockstep::kernels {
namespace {

template <int kRows>
constexpr bool kByPairs = kRowPairs&& kRows > 1;

template <typename F, int kRows>
class PairTile;

#if defined(__ARM_FEATURE_MATMUL_INT8)
static_assert(kParts == 4);

// The lower (upper) halves of two registers, one behind the other.
template <typename Native>
inline Native LowerHalves(Native x, Native y) {
  return (Native)vzip1q_u64((uint64x2_t)x, (uint64x2_t)y);
}
template <typename Native>
inline Native UpperHalves(Native x, Native y) {
  return (Native)vzip2q_u64((uint64x2_t)x, (uint64x2_t)y);
}
// The number of each of two rows, for both outputs.
inline NativeI32 OfRows(int32_t even, int32_t odd) {
  return (NativeI32)vcombine_s32(vdup_n_s32(even), vdup_n_s32(odd));
}
inline NativeF32 OfRows(float even, float odd) {
  return (NativeF32)vcombine_f32(vdup_n_f32(even), vdup_n_f32(odd));
}

// Two stored words of four lanes, eight bytes for each: a matrix of two lanes, and one of the
// others.
inline WordRegisters<2> ByLanes(NativeU32 first, NativeU32 second) {
  const auto x = (uint32x4_t)first, y = (uint32x4_t)second;
  return {(NativeU32)vzip1q_u32(x, y), (NativeU32)vzip2q_u32(x, y)};
}
template <int kPart>
struct LanePairs {
  static WordRegisters<2> Load(const std::byte* words) {
    const std::byte* from = words + kPart * sizeof(NativeU32);
    return ByLanes(LoadNative<NativeU32>(from), LoadNative<NativeU32>(from + 4 * kLaneCount));
  }
  static WordRegisters<2> LoadPlane(const std::byte* plane) {
    const auto bits = LoadNative<NativeU32>(plane + kPart * sizeof(NativeU32));
    return ByLanes(bits, bits >> 1);
  }
};

// kRows, an even number, rows of one panel.
template <typename F, int kRows>
class PairTile {
 public:
  using Rows = const ActivationBlock* const (&)[kRows];

  // One block: y += x . w, in pairs.
  static inline __attribute__((always_inline)) void AddBlock(DType scale_type,
                                                             const std::byte* outer,
                                                             const std::byte* inner, Rows x,
                                                             F32x16 (&y)[kRows][1]) {
    BlockScales scales;
    F::Load(scale_type, outer, inner, &scales);
    NativeI32 bytes[kRows / 2][kSteps];
#pragma GCC unroll 4
    for (int pair = 0; pair < kRows / 2; ++pair) {
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        const auto even = LoadNative<NativeI32>(x[2 * pair]->q + 16 * half);
        const auto odd = LoadNative<NativeI32>(x[2 * pair + 1]->q + 16 * half);
        bytes[pair][2 * half] = LowerHalves(even, odd);
        bytes[pair][2 * half + 1] = UpperHalves(even, odd);
      }
    }
    const std::byte* codes = inner + F::kInnerBytes * kLaneCount;
    AddPart<0>(scales, codes, bytes, x, y);
    AddPart<1>(scales, codes, bytes, x, y);
    AddPart<2>(scales, codes, bytes, x, y);
    AddPart<3>(scales, codes, bytes, x, y);
  }

  // From pairs to rows.
  static void Untangle(F32x16 (&y)[kRows][1]) {
    for (int pair = 0; pair < kRows / 2; ++pair) {
      const F32x16 first = y[2 * pair][0], second = y[2 * pair + 1][0];
      y[2 * pair][0] = Map(LowerHalves<NativeF32>, first, second);
      y[2 * pair + 1][0] = Map(UpperHalves<NativeF32>, first, second);
    }
  }

 private:
  static constexpr int kSteps = 4;  // of eight inputs
  using Bytes = const NativeI32 (&)[kRows / 2][kSteps];

  // Four outputs.
  template <int kPart>
  static inline __attribute__((always_inline)) void AddPart(const BlockScales& scales,
                                                            const std::byte* codes, Bytes bytes,
                                                            Rows x, F32x16 (&y)[kRows][1]) {
    NativeF32 t[kRows];
    Scaled<kPart, 0, F::kTwo ? kSteps / 2 : kSteps>(scales, codes, bytes, x, t);
    if constexpr (F::kTwo) Scaled<kPart, kSteps / 2, kSteps>(scales, codes, bytes, x, t);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const ActivationBlock &even = *x[r / 2 * 2], &odd = *x[r / 2 * 2 + 1];
      if constexpr (F::kMinimum && F::kTwo) {
        for (int half = 0; half < 2; ++half)
          t[r] = FusedNative(OfOutputs<kPart>(scales.minimum[half], r),
                             OfRows(even.half_sums[half], odd.half_sums[half]), t[r]);
      } else if constexpr (F::kMinimum) {
        t[r] = FusedNative(OfOutputs<kPart>(scales.minimum[0], r), OfRows(even.sum, odd.sum), t[r]);
      }
      NativeF32& sum = Part<kPart>(y[r][0]);
      sum = FusedNative(OfRows(even.scale, odd.scale), t[r], sum);
    }
  }

  // t = the scaled sums of steps [kBegin, kEnd); those of a second half are added.
  template <int kPart, int kBegin, int kEnd>
  static inline __attribute__((always_inline)) void Scaled(const BlockScales& scales,
                                                           const std::byte* codes, Bytes bytes,
                                                           Rows x, NativeF32 (&t)[kRows]) {
    constexpr int kHalf = kBegin * 2 / kSteps;
    NativeI32 sums[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      sums[r] = F::kZero != 0 ? OfRows(x[r / 2 * 2]->start[kHalf], x[r / 2 * 2 + 1]->start[kHalf])
                              : NativeI32{};
    }
    AddSteps<kPart, kBegin, kEnd>(codes, bytes, sums);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const NativeF32 scale = OfOutputs<kPart>(scales.scale[kHalf], r);
      const NativeF32 sum = __builtin_convertvector(sums[r], NativeF32);
      t[r] = kBegin == 0 ? scale * sum : FusedNative(scale, sum, t[r]);
    }
  }

  template <int kPart, int kStep, int kEnd>
  static inline __attribute__((always_inline)) void AddSteps(const std::byte* codes, Bytes bytes,
                                                             NativeI32 (&sums)[kRows]) {
    if constexpr (kStep < kEnd) {
      const WordRegisters<2> outputs = F::Words::template Word<2 * kStep, LanePairs<kPart>>(codes);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        sums[r] = MatrixNative(sums[r], r % 2 == 0 ? outputs.a : outputs.b, bytes[r / 2][kStep]);
      }
      AddSteps<kPart, kStep + 1, kEnd>(codes, bytes, sums);
    }
  }

  // The numbers of the two outputs of register r, for both rows.
  template <int kPart>
  static NativeF32 OfOutputs(const F32x16& all, int r) {
    const NativeF32 four = Part<kPart>(all);
    return r % 2 == 0 ? LowerHalves(four, four) : UpperHalves(four, four);
  }
};

#endif

}  // namespace
}  // namespace lockstep::kernels
