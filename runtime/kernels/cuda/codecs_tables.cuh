// The codecs whose codes are looked up, or are numbers of four bits, and MLX's strings of bits
// (codecs.cuh says what a codec is).
#pragma once

#include "runtime/kernels/cuda/codecs.cuh"

namespace lockstep::kernels::cuda {

// Values first .. first + 3 of iq4_nl's table, each plus 128, as the bytes of a word.
constexpr uint32_t Iq4Word(int first) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(kIq4Values[first + i] + 128) << (8 * i);
  return word;
}
constexpr uint32_t kIq4Words[4] = {Iq4Word(0), Iq4Word(4), Iq4Word(8), Iq4Word(12)};

// The four entries of that table that the low halves of a word's bytes name.
__device__ inline uint32_t Iq4Bytes(uint32_t nibbles) {
  const uint32_t named = __byte_perm(nibbles | nibbles >> 4, 0, 0x4420);  // four times four bits
  const uint32_t low = __byte_perm(kIq4Words[0], kIq4Words[1], named & 0x7777u);
  const uint32_t high = __byte_perm(kIq4Words[2], kIq4Words[3], named & 0x7777u);
  const uint32_t is_high = __byte_perm(0, 0xffffffffu, (named & 0x8888u) >> 1);
  return (low & ~is_high) | (high & is_high);
}

// Four numbers of e2m1 in the low halves of a word's bytes, times `factor` / 2^126.
__device__ inline void FourE2m1(uint32_t nibbles, float factor, float* to) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t code = nibbles >> (8 * i);
    to[i] = __uint_as_float((code & 7u) << 22 | (code & 8u) << 28) * factor;
  }
}

template <>
struct Codec<Encoding::kIq4Nl> : ScaledCodec {
  static constexpr int kWords = 4;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return HalfScale(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int half, float* values) {
    for (int i = 0; i < 2; ++i)
      FourBytes(Iq4Bytes(Nibbles<kEight>(words, half, i)), 128, values + 4 * i);
  }
};

template <>
struct Codec<Encoding::kIq4Xs> : ScaledCodec {
  static constexpr int kWords = 4;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    const float d = Half(Load16(row + 2 * OuterEntry<8>(rows, block)));
    const float scale = d * SignedByte(row + rows.inner_at + block);
    return {{scale, scale}, {}};
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales& scales, int half,
                               float* values) {
    Codec<Encoding::kIq4Nl>::Eight<kEight>(words, scales, half, values);
  }
};

template <>
struct Codec<Encoding::kMxfp4> : ScaledCodec {
  static constexpr int kWords = 4;
  // Half the scale, and doubled values: the largest scale is 2^128.
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    const uint32_t code = Byte(row + rows.inner_at + block);
    const float scale = __uint_as_float(code < 2 ? 0x00200000u << code : (code - 1) << 23);
    return {{scale, scale}, {}};
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int half, float* values) {
    for (int i = 0; i < 2; ++i) FourE2m1(Nibbles<kEight>(words, half, i), 0x1p127f, values + 4 * i);
  }
};

template <>
struct Codec<Encoding::kNvfp4> : ScaledCodec {
  static constexpr int kWords = 4;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    const float whole = *reinterpret_cast<const float*>(row);
    BlockScales scales;
    for (int half = 0; half < 2; ++half) {
      const float scale = Fp8(Byte(row + rows.inner_at + 2 * block + half));
      scales.scale[half] = whole < 0 ? scale / -whole : whole * scale;
    }
    return scales;
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int half, float* values) {
    for (int i = 0; i < 2; ++i) FourE2m1(Nibbles<kEight>(words, half, i), 0x1p126f, values + 4 * i);
  }
};

template <int kBits>
struct Codec<Encoding::kMlx, kBits> {
  static constexpr int kWords = kBits;
  static constexpr int kLoads = kBits == 8 ? 2 : 1;
  static constexpr bool kScaled = false;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    const int size = rows.scale_type == DType::kF32 ? 4 : 2;
    const std::byte* outer = row + 2 * size * OuterEntry(rows, block);
    const float scale = ScaleNumber(outer, rows.scale_type);
    const float minimum = ScaleNumber(outer + size, rows.scale_type);
    return {{scale, scale}, {minimum, minimum}};
  }
  // Word `index` of the string of bits of a half.
  __device__ static uint32_t Word(const uint32_t* words, int half, int index) {
    constexpr int kSkipped = kBits / 2, kShift = 16 * (kBits % 2);
    if (kLoads == 2 || half == 0) return words[index];
    const int at = index + kSkipped;
    return kShift == 0 ? words[at]
                       : __funnelshift_r(words[at], at + 1 < kBits ? words[at + 1] : 0u, kShift);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales& scales, int half,
                               float* values) {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      constexpr uint32_t kMask = (1u << kBits) - 1;
      const int at = (8 * kEight + i) * kBits, word = at / 32, shift = at % 32;
      uint32_t bits = Word(words, half, word) >> shift;
      if (shift + kBits > 32) bits |= Word(words, half, word + 1) << (32 - shift);
      values[i] = __uint_as_float((bits & kMask) | kMagicBits) - kMagic;
    }
    AddMinimum(scales, half, values);
  }
};

}  // namespace lockstep::kernels::cuda
