// Weights of every format as float32, eight at a time. One Codec for each encoding:
//
//     kWords    words of codes in a block of 32 weights
//     kLoads    in how many parts the words of a block are loaded: all at once, in halves, in
//     eights kScaled   a weight is scale[half] * value, where eight values come from Eight; else
//     Eight
//               gives weights. So products may take a block's scale once and not for each weight.
//     Load      what a block's weights need besides their codes
//     Eight     values 8 * kEight .. + 7 (kEight is 0 or 1) of half a block, from the words of the
//               part. The half is no constant, so that kernels are half as long; words with
//               constant indices alone stay in registers.
//
// scale[half] * value, and of the others the value itself, has the bits of DecodeRow.
#pragma once

#include "runtime/kernels/cuda/device.cuh"
#include "runtime/kernels/cuda/packed_rows.h"

namespace lockstep::kernels::cuda {

// Of weights 0 .. 15 and 16 .. 31 of a block. `minimum` is added by those codecs that have one.
struct BlockScales {
  float scale[2] = {1, 1};
  float minimum[2] = {0, 0};
};

// 2^23 in the exponent: an integer below it in the mantissa is 2^23 + that integer.
constexpr uint32_t kMagicBits = 0x4b000000u;
constexpr float kMagic = 8388608.0f;

// The bytes of a word, less `offset`.
__device__ inline void FourBytes(uint32_t word, float offset, float* to) {
#pragma unroll
  for (uint32_t i = 0; i < 4; ++i)
    to[i] = __uint_as_float(__byte_perm(word, kMagicBits, 0x7440u | i)) - (kMagic + offset);
}
// Four bits to the lowest bit of four bytes.
__device__ inline uint32_t SpreadBits(uint32_t four) { return four * 0x204081u & 0x01010101u; }
__device__ inline uint32_t Byte(const std::byte* at) { return static_cast<uint32_t>(*at); }
__device__ inline uint32_t Load16(const std::byte* at) {
  return *reinterpret_cast<const uint16_t*>(at);
}
__device__ inline float SignedByte(const std::byte* at) {
  return static_cast<float>(static_cast<int8_t>(Byte(at)));
}
__device__ inline float ScaleNumber(const std::byte* at, DType type) {
  if (type == DType::kF32) return *reinterpret_cast<const float*>(at);
  return type == DType::kF16 ? Half(Load16(at)) : Bf16(Load16(at));
}

template <int kGroupBlocks = 0>
__device__ inline int64_t OuterEntry(const PackedRows& rows, int block) {
  const auto at = static_cast<uint32_t>(rows.phase + block);
  return at / static_cast<uint32_t>(kGroupBlocks > 0 ? kGroupBlocks : rows.group_blocks);
}

// One scale for a block, a half.
__device__ inline BlockScales HalfScale(const PackedRows& rows, const std::byte* row, int block) {
  const float scale = Half(Load16(row + rows.inner_at + 2 * block));
  return {{scale, scale}, {}};
}
// Two halves: a scale and what is added.
__device__ inline BlockScales HalfPair(const PackedRows& rows, const std::byte* row, int block) {
  const std::byte* inner = row + rows.inner_at + 4 * block;
  const float scale = Half(Load16(inner)), minimum = Half(Load16(inner + 2));
  return {{scale, scale}, {minimum, minimum}};
}
// Two signed bytes, each times a super-block's half.
__device__ inline BlockScales SignedPair(const PackedRows& rows, const std::byte* row, int block) {
  const float d = Half(Load16(row + 2 * OuterEntry<8>(rows, block)));
  const std::byte* inner = row + rows.inner_at + 2 * block;
  return {{d * SignedByte(inner), d * SignedByte(inner + 1)}, {}};
}
// A scale and a minimum, a byte each, times a super-block's two halves.
__device__ inline BlockScales ScaleMinimum(const PackedRows& rows, const std::byte* row,
                                           int block) {
  const std::byte* outer = row + 4 * OuterEntry<8>(rows, block);
  const std::byte* inner = row + rows.inner_at + 2 * block;
  const float scale = Half(Load16(outer)) * static_cast<float>(Byte(inner));
  const float minimum = -(Half(Load16(outer + 2)) * static_cast<float>(Byte(inner + 1)));
  return {{scale, scale}, {minimum, minimum}};
}

// The four low (values 0 .. 15) or high bits of the bytes of words[0 .. 3].
template <int kEight>
__device__ inline uint32_t Nibbles(const uint32_t* words, int half, int which) {
  return words[2 * kEight + which] >> (4 * half) & 0x0f0f0f0fu;
}
template <int kEight>
__device__ inline uint32_t TwoBits(const uint32_t* words, int half, int which) {
  return words[which] >> (4 * half + 2 * kEight) & 0x03030303u;
}
template <int kEight>
__device__ inline uint32_t OneBit(uint32_t plane, int half, int which) {
  return SpreadBits(plane >> (16 * half + 8 * kEight + 4 * which) & 15u);
}
// scale * q + minimum, each rounded once.
__device__ inline void AddMinimum(const BlockScales& scales, int half, float* values) {
  const float scale = half == 0 ? scales.scale[0] : scales.scale[1];
  const float minimum = half == 0 ? scales.minimum[0] : scales.minimum[1];
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = scale * values[i] + minimum;
}

struct NumberCodec {
  static constexpr int kLoads = 4;
  static constexpr bool kScaled = false;
  __device__ static BlockScales Load(const PackedRows&, const std::byte*, int) { return {}; }
};
struct ByteCodec {
  static constexpr int kLoads = 2;
  static constexpr bool kScaled = true;
};
struct ScaledCodec {
  static constexpr int kLoads = 1;
  static constexpr bool kScaled = true;
};
struct MinimumCodec {
  static constexpr int kLoads = 1;
  static constexpr bool kScaled = false;
};

template <Encoding kEncoding, int kBits = 0>
struct Codec;

template <>
struct Codec<Encoding::kF32> : NumberCodec {
  static constexpr int kWords = 32;
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int, float* values) {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = __uint_as_float(words[i]);
  }
};

template <>
struct Codec<Encoding::kF16> : NumberCodec {
  static constexpr int kWords = 16;
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int, float* values) {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = Half(words[i / 2] >> (i % 2 * 16) & 0xffffu);
  }
};

template <>
struct Codec<Encoding::kBF16> : NumberCodec {
  static constexpr int kWords = 16;
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int, float* values) {
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const uint32_t both = words[i / 2];
      values[i] = __uint_as_float(both << 16);
      values[i + 1] = __uint_as_float(both & 0xffff0000u);
    }
  }
};

template <>
struct Codec<Encoding::kFp8> : ByteCodec {
  static constexpr int kWords = 8;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    const float scale = *reinterpret_cast<const float*>(row + 4 * OuterEntry(rows, block));
    return {{scale, scale}, {}};
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int, float* values) {
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = Fp8(words[2 * kEight + i / 4] >> (i % 4 * 8) & 0xffu);
  }
};

template <>
struct Codec<Encoding::kQ4_0> : ScaledCodec {
  static constexpr int kWords = 4;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return HalfScale(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int half, float* values) {
    for (int i = 0; i < 2; ++i) FourBytes(Nibbles<kEight>(words, half, i), 8, values + 4 * i);
  }
};

template <>
struct Codec<Encoding::kQ4_1> : MinimumCodec {
  static constexpr int kWords = 4;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return HalfPair(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales& scales, int half,
                               float* values) {
    for (int i = 0; i < 2; ++i) FourBytes(Nibbles<kEight>(words, half, i), 0, values + 4 * i);
    AddMinimum(scales, half, values);
  }
};

// Bit 4 of all values in the first word.
template <int kEight>
__device__ inline uint32_t FiveBits(const uint32_t* words, int half, int which) {
  return Nibbles<kEight>(words + 1, half, which) | OneBit<kEight>(words[0], half, which) << 4;
}

template <>
struct Codec<Encoding::kQ5_0> : ScaledCodec {
  static constexpr int kWords = 5;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return HalfScale(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int half, float* values) {
    for (int i = 0; i < 2; ++i) FourBytes(FiveBits<kEight>(words, half, i), 16, values + 4 * i);
  }
};

template <>
struct Codec<Encoding::kQ5_1> : MinimumCodec {
  static constexpr int kWords = 5;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return HalfPair(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales& scales, int half,
                               float* values) {
    for (int i = 0; i < 2; ++i) FourBytes(FiveBits<kEight>(words, half, i), 0, values + 4 * i);
    AddMinimum(scales, half, values);
  }
};

template <>
struct Codec<Encoding::kQ8_0> : ByteCodec {
  static constexpr int kWords = 8;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return HalfScale(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int, float* values) {
    for (int i = 0; i < 2; ++i) FourBytes(words[2 * kEight + i] ^ 0x80808080u, 128, values + 4 * i);
  }
};

template <>
struct Codec<Encoding::kQ2_K> : MinimumCodec {
  static constexpr int kWords = 2;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    const std::byte* outer = row + 4 * OuterEntry<8>(rows, block);
    const float d = Half(Load16(outer)), dmin = Half(Load16(outer + 2));
    BlockScales scales;
    for (int half = 0; half < 2; ++half) {
      const uint32_t both = Byte(row + rows.inner_at + 2 * block + half);
      scales.scale[half] = d * static_cast<float>(both & 15);
      scales.minimum[half] = -(dmin * static_cast<float>(both >> 4));
    }
    return scales;
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales& scales, int half,
                               float* values) {
    for (int i = 0; i < 2; ++i) FourBytes(TwoBits<kEight>(words, half, i), 0, values + 4 * i);
    AddMinimum(scales, half, values);
  }
};

template <>
struct Codec<Encoding::kQ3_K> : ScaledCodec {
  static constexpr int kWords = 3;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return SignedPair(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int half, float* values) {
    for (int i = 0; i < 2; ++i)
      FourBytes(TwoBits<kEight>(words, half, i) | OneBit<kEight>(words[2], half, i) << 2, 4,
                values + 4 * i);
  }
};

template <>
struct Codec<Encoding::kQ4_K> : MinimumCodec {
  static constexpr int kWords = 4;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return ScaleMinimum(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales& scales, int half,
                               float* values) {
    Codec<Encoding::kQ4_1>::Eight<kEight>(words, scales, half, values);
  }
};

template <>
struct Codec<Encoding::kQ5_K> : MinimumCodec {
  static constexpr int kWords = 5;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return ScaleMinimum(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales& scales, int half,
                               float* values) {
    Codec<Encoding::kQ5_1>::Eight<kEight>(words, scales, half, values);
  }
};

template <>
struct Codec<Encoding::kQ6_K> : ScaledCodec {
  static constexpr int kWords = 6;
  __device__ static BlockScales Load(const PackedRows& rows, const std::byte* row, int block) {
    return SignedPair(rows, row, block);
  }
  template <int kEight>
  __device__ static void Eight(const uint32_t* words, const BlockScales&, int half, float* values) {
    for (int i = 0; i < 2; ++i) {
      FourBytes(Nibbles<kEight>(words, half, i) | TwoBits<kEight>(words + 4, half, i) << 4, 32,
                values + 4 * i);
    }
  }
};

}  // namespace lockstep::kernels::cuda
