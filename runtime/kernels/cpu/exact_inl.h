// Products of float32 activations with quantized weights in the portable layout
// (runtime/tensor/weight_format.h): blocks become the numbers of DecodeRow in registers, and are
// added in the order of matmul_inl.h. One row multiplies them where they are; several rows share
// them by way of a buffer in the first-level cache.
#pragma once

#include "runtime/kernels/cpu/kernel_table.h"
#include "runtime/kernels/cpu/registers_inl.h"
#include "runtime/tensor/weight_format.h"

namespace lockstep::kernels {
namespace {

// The scales of sixteen blocks, as they are taken from the planes at once.
struct ExactScales {
  alignas(64) float scale[2][kLanes];  // of both halves, if they have their own
  alignas(64) float addend[kLanes];
};

// Where the planes of a row stand.
struct ExactRow {
  const std::byte *outer, *inner, *codes;
  int64_t phase;

  ExactRow(const MatMulPart& part, int64_t output, uint64_t inner_at)
      : outer(static_cast<const std::byte*>(part.weights) +
              static_cast<uint64_t>(output) * part.row_bytes),
        inner(outer + inner_at),
        codes(outer + part.codes_at),
        phase(part.phase) {}
};

inline float FirstHalf(const std::byte* from) {
  const F32x16 numbers = LoadWide(reinterpret_cast<const Half*>(from));
  float first;
  std::memcpy(&first, &numbers, sizeof(first));
  return first;
}

inline F32x16 IntsToFloat(const U32x16& x, int32_t offset) {
  return MapAs<F32x16>(
      [=](NativeU32 a) { return __builtin_convertvector((NativeI32)a - offset, NativeF32); }, x);
}

// Sixteen 16-bit words as 32-bit numbers.
inline U32x16 WidenWords(const std::byte* from) {
  return MakeAs<U32x16>([&](int lane) { return Widen(from + 2 * lane); });
}

inline U32x16 LaneNumbers() {
  alignas(64) static constexpr uint32_t kNumbers[kLanes] = {0, 1, 2,  3,  4,  5,  6,  7,
                                                            8, 9, 10, 11, 12, 13, 14, 15};
  return LoadWords(reinterpret_cast<const std::byte*>(kNumbers));
}

// Bit `first` + lane of `word`, as bit `place`.
inline U32x16 BitOfLane(const std::byte* word, int first, int place) {
  uint32_t bits;
  std::memcpy(&bits, word, sizeof(bits));
  return MapAs<U32x16>(
      [=](NativeU32 lane) { return (((bits >> first) - NativeU32{}) >> lane & 1u) << place; },
      LaneNumbers());
}

// Sixteen weights of four planes of two bits: the lower two planes, or the upper ones.
inline U32x16 TwoBitsOfLane(const std::byte* planes, int half) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(planes);
  alignas(16) uint8_t twice[kLanes];
  std::memcpy(twice, bytes, 8);
  std::memcpy(twice + 8, bytes, 8);
  return MapAs<U32x16>(
      [=](NativeU32 byte, NativeU32 lane) {
        return byte >> ((lane >> 3) * 2 + static_cast<uint32_t>(4 * half)) & 3u;
      },
      WidenBytes(twice), LaneNumbers());
}

inline const uint8_t* AsBytes(const std::byte* from) {
  return reinterpret_cast<const uint8_t*>(from);
}

// What becomes of codes q: scale * (q - kOffset), scale * q + addend, scale * table[q].
template <int kOffset>
struct ExactOffset {
  F32x16 scale;
  F32x16 operator()(const U32x16& q) const { return scale * IntsToFloat(q, kOffset); }
};
struct ExactAddend {
  F32x16 scale, addend;
  // The product is exact (a scale of at most 17 bits, a code of 5): one rounding, as in DecodeRow.
  F32x16 operator()(const U32x16& q) const { return Fused(scale, IntsToFloat(q, 0), addend); }
};
struct ExactTable {
  F32x16 scale;
  const int8_t* table;
  F32x16 operator()(const U32x16& q) const {
    return scale * MapAs<F32x16>(
                       [](NativeU32 a) {
                         return __builtin_convertvector((NativeI32)(a << 24) >> 24, NativeF32);
                       },
                       Lookup(q, table));
  }
};

// The weights of nibbles, where sixteen values are few enough to be looked up in a register.
template <typename Values>
inline __attribute__((always_inline)) void NibbleWeights(const std::byte* codes,
                                                         const Values& low_values,
                                                         const Values& high_values, F32x16* low,
                                                         F32x16* high) {
  const U32x16 both = WidenBytes(AsBytes(codes));
#if defined(__AVX512F__)
  const auto look_up = [](const Values& values, const U32x16& q) {
    const F32x16 all = values(LaneNumbers());
    return F32x16{(NativeF32)_mm512_permutexvar_ps((__m512i)q.a, (__m512)all.a)};
  };
  *low = look_up(low_values, both);  // looks at the low four bits alone
  *high = look_up(high_values, Shift<-4>(both));
#else
  *low = low_values(both & 15u);
  *high = high_values(Shift<-4>(both));
#endif
}

// --- scales ---

struct ExactHalfScale {  // f16 d
  static void Load(const ExactRow& row, int64_t block, int64_t, ExactScales* to) {
    Store(LoadWide(reinterpret_cast<const Half*>(row.inner + 2 * block)), to->scale[0]);
  }
};
struct ExactHalfScaleAddend {  // f16 d, m
  static void Load(const ExactRow& row, int64_t block, int64_t count, ExactScales* to) {
    for (int64_t i = 0; i < count; ++i) {
      to->scale[0][i] = FirstHalf(row.inner + 4 * (block + i));
      to->addend[i] = FirstHalf(row.inner + 4 * (block + i) + 2);
    }
  }
};
// Groups of eight blocks: numbers[i] of the group that block + i is in, `at` bytes into its entry.
inline F32x16 OfGroups(const ExactRow& row, int64_t block, int64_t count, int64_t entry_bytes,
                       int64_t at) {
  constexpr int64_t kGroup = 8;
  alignas(64) float numbers[kLanes] = {};
  for (int64_t i = 0; i < count;) {
    const int64_t group = (row.phase + block + i) / kGroup;
    const int64_t left = (group + 1) * kGroup - row.phase - block;
    const float number = FirstHalf(row.outer + group * entry_bytes + at);
    for (; i < left && i < kLanes; ++i) numbers[i] = number;
  }
  return Load(numbers);
}
struct ExactSuperAddend {  // q4_k, q5_k
  static void Load(const ExactRow& row, int64_t block, int64_t count, ExactScales* to) {
    const U32x16 both = WidenWords(row.inner + 2 * block);
    Store(OfGroups(row, block, count, 4, 0) * IntsToFloat(both & 255u, 0), to->scale[0]);
    const F32x16 minimum =
        OfGroups(row, block, count, 4, 2) * IntsToFloat(Shift<-8>(both) & 255u, 0);
    Store(Splat(0) - minimum, to->addend);
  }
};
struct ExactSuperHalves {  // q3_k, q6_k
  static void Load(const ExactRow& row, int64_t block, int64_t count, ExactScales* to) {
    const F32x16 d = OfGroups(row, block, count, 2, 0);
    const U32x16 both = WidenWords(row.inner + 2 * block);
    const auto with_sign = [](NativeU32 a) {
      return __builtin_convertvector((NativeI32)(a << 24) >> 24, NativeF32);
    };
    Store(d * MapAs<F32x16>(with_sign, both), to->scale[0]);
    Store(d * MapAs<F32x16>(with_sign, Shift<-8>(both)), to->scale[1]);
  }
};
struct ExactSuperScale {  // iq4_xs
  static void Load(const ExactRow& row, int64_t block, int64_t count, ExactScales* to) {
    const auto* scales = reinterpret_cast<const int8_t*>(row.inner + block);
    Store(OfGroups(row, block, count, 2, 0) * BytesToFloat(scales), to->scale[0]);
  }
};

// --- formats: the scales that they inherit, and kCodes bytes of codes per block ---

struct ExactQ4_0 : ExactHalfScale {
  static constexpr int64_t kCodes = 16;
  static void Weights(const std::byte* codes, const ExactScales& scales, int64_t i, F32x16* low,
                      F32x16* high) {
    const ExactOffset<8> values{Splat(scales.scale[0][i])};
    NibbleWeights(codes, values, values, low, high);
  }
};
template <typename Scales>
struct ExactFourBits : Scales {  // with an addend
  static constexpr int64_t kCodes = 16;
  static void Weights(const std::byte* codes, const ExactScales& scales, int64_t i, F32x16* low,
                      F32x16* high) {
    const ExactAddend values{Splat(scales.scale[0][i]), Splat(scales.addend[i])};
    NibbleWeights(codes, values, values, low, high);
  }
};
template <typename Scales>
struct ExactIq4 : Scales {
  static constexpr int64_t kCodes = 16;
  static void Weights(const std::byte* codes, const ExactScales& scales, int64_t i, F32x16* low,
                      F32x16* high) {
    const ExactTable values{Splat(scales.scale[0][i]), kIq4Values};
    NibbleWeights(codes, values, values, low, high);
  }
};
// Five bits: the upper ones, then nibbles.
template <typename Values>
inline void FiveBitWeights(const std::byte* codes, const Values& values, F32x16* low,
                           F32x16* high) {
  const U32x16 both = WidenBytes(AsBytes(codes + 4));
  *low = values((both & 15u) | BitOfLane(codes, 0, 4));
  *high = values(Shift<-4>(both) | BitOfLane(codes, 16, 4));
}
struct ExactQ5_0 : ExactHalfScale {
  static constexpr int64_t kCodes = 20;
  static void Weights(const std::byte* codes, const ExactScales& scales, int64_t i, F32x16* low,
                      F32x16* high) {
    FiveBitWeights(codes, ExactOffset<16>{Splat(scales.scale[0][i])}, low, high);
  }
};
template <typename Scales>
struct ExactFiveBits : Scales {  // with an addend
  static constexpr int64_t kCodes = 20;
  static void Weights(const std::byte* codes, const ExactScales& scales, int64_t i, F32x16* low,
                      F32x16* high) {
    FiveBitWeights(codes, ExactAddend{Splat(scales.scale[0][i]), Splat(scales.addend[i])}, low,
                   high);
  }
};
struct ExactQ8_0 : ExactHalfScale {
  static constexpr int64_t kCodes = 32;
  static void Weights(const std::byte* codes, const ExactScales& scales, int64_t i, F32x16* low,
                      F32x16* high) {
    const auto* bytes = reinterpret_cast<const int8_t*>(codes);
    *low = Splat(scales.scale[0][i]) * BytesToFloat(bytes);
    *high = Splat(scales.scale[0][i]) * BytesToFloat(bytes + kLanes);
  }
};
struct ExactQ3_K : ExactSuperHalves {
  static constexpr int64_t kCodes = 12;
  static void Weights(const std::byte* codes, const ExactScales& scales, int64_t i, F32x16* low,
                      F32x16* high) {
    const ExactOffset<4> first{Splat(scales.scale[0][i])}, second{Splat(scales.scale[1][i])};
    *low = first(TwoBitsOfLane(codes, 0) | BitOfLane(codes + 8, 0, 2));
    *high = second(TwoBitsOfLane(codes, 1) | BitOfLane(codes + 8, 16, 2));
  }
};
struct ExactQ6_K : ExactSuperHalves {
  static constexpr int64_t kCodes = 24;
  static void Weights(const std::byte* codes, const ExactScales& scales, int64_t i, F32x16* low,
                      F32x16* high) {
    const ExactOffset<32> first{Splat(scales.scale[0][i])}, second{Splat(scales.scale[1][i])};
    const U32x16 both = WidenBytes(AsBytes(codes));
    *low = first((both & 15u) | Shift<4>(TwoBitsOfLane(codes + 16, 0)));
    *high = second(Shift<-4>(both) | Shift<4>(TwoBitsOfLane(codes + 16, 1)));
  }
};

// Calls body(decoder) if there is one for the format; returns whether there is.
template <typename Body>
inline bool WithExactFormat(const WeightFormat& format, const Body& body) {
  switch (format.encoding) {
    case Encoding::kQ4_0:
      body(ExactQ4_0{});
      return true;
    case Encoding::kQ4_1:
      body(ExactFourBits<ExactHalfScaleAddend>{});
      return true;
    case Encoding::kQ5_0:
      body(ExactQ5_0{});
      return true;
    case Encoding::kQ5_1:
      body(ExactFiveBits<ExactHalfScaleAddend>{});
      return true;
    case Encoding::kQ8_0:
      body(ExactQ8_0{});
      return true;
    case Encoding::kQ3_K:
      body(ExactQ3_K{});
      return true;
    case Encoding::kQ4_K:
      body(ExactFourBits<ExactSuperAddend>{});
      return true;
    case Encoding::kQ5_K:
      body(ExactFiveBits<ExactSuperAddend>{});
      return true;
    case Encoding::kQ6_K:
      body(ExactQ6_K{});
      return true;
    case Encoding::kIq4Nl:
      body(ExactIq4<ExactHalfScale>{});
      return true;
    case Encoding::kIq4Xs:
      body(ExactIq4<ExactSuperScale>{});
      return true;
    default:
      return false;
  }
}

// --- products ---

// kOutputs outputs of one row of x, `apart` rows of weights from each other.
template <typename D, int kOutputs>
void ExactTile(const MatMulPart& part, uint64_t inner_at, const float* x, int64_t row,
               int64_t output, int64_t apart) {
  F32x16 sums[kOutputs];
  ExactScales scales[kOutputs];
  const std::byte* codes[kOutputs];
#pragma GCC unroll 4
  for (int n = 0; n < kOutputs; ++n) {
    sums[n] = Splat(0);
    codes[n] = ExactRow(part, output + n * apart, inner_at).codes;
  }
  const int64_t blocks = part.inputs / kBlockWeights;
  for (int64_t first = 0; first < blocks; first += kLanes) {
    const int64_t count = blocks - first < kLanes ? blocks - first : kLanes;
    for (int n = 0; n < kOutputs; ++n)
      D::Load(ExactRow(part, output + n * apart, inner_at), first, count, &scales[n]);
    for (int64_t i = 0; i < count; ++i, x += kBlockWeights) {
      const F32x16 low = kernels::Load(x), high = kernels::Load(x + kLanes);
#pragma GCC unroll 4
      for (int n = 0; n < kOutputs; ++n) {
        F32x16 w_low, w_high;
        D::Weights(codes[n], scales[n], i, &w_low, &w_high);
        sums[n] = Fused(high, w_high, Fused(low, w_low, sums[n]));
        codes[n] += D::kCodes;
      }
    }
  }
#pragma GCC unroll 4
  for (int n = 0; n < kOutputs; ++n) {
    const int64_t at = output + n * apart;
    part.y[row * part.y_stride + at] =
        SumLanes(sums[n]) + (part.bias != nullptr ? part.bias[at] : 0.0f);
  }
}

// One row, all outputs. The rows of weights that are read side by side lie far apart, so that each
// is the beginning of a long stream.
template <typename D>
void ExactSingleRow(const MatMulPart& part, uint64_t inner_at, int64_t row) {
  constexpr int kOutputs = 4;
  const float* x = part.x + (part.row_of != nullptr ? part.row_of[row] : row) * part.inputs;
  const int64_t apart = (part.output_end - part.output_begin) / kOutputs;
  for (int64_t output = part.output_begin; output < part.output_begin + apart; ++output)
    ExactTile<D, kOutputs>(part, inner_at, x, row, output, apart);
  for (int64_t output = part.output_begin + kOutputs * apart; output < part.output_end; ++output)
    ExactTile<D, 1>(part, inner_at, x, row, output, 0);
}

// Weights [begin, begin + count) of one output: whole blocks, at most sixteen.
template <typename D>
void ExactPiece(const MatMulPart& part, uint64_t inner_at, int64_t output, int64_t begin,
                int64_t count, float* to) {
  const ExactRow row(part, output, inner_at);
  ExactScales scales;
  const int64_t block = begin / kBlockWeights;
  const int64_t blocks = count / kBlockWeights;
  D::Load(row, block, blocks, &scales);
  for (int64_t i = 0; i < blocks; ++i) {
    F32x16 low, high;
    D::Weights(row.codes + (block + i) * D::kCodes, scales, i, &low, &high);
    Store(low, to + i * kBlockWeights);
    Store(high, to + i * kBlockWeights + kLanes);
  }
}

}  // namespace
}  // namespace lockstep::kernels
