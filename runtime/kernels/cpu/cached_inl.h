// Sixteen values of a row of the KV cache as float32, in registers, and the fold of sixteen sums at
// once.
#pragma once

#include "runtime/kernels/cache_row.h"
#include "runtime/kernels/cpu/lanes.h"
#include "runtime/kernels/cpu/registers_inl.h"

namespace lockstep::kernels {
namespace {

// Halves of the cache, NaN included (there are no infinities).
inline F32x16 LoadCachedHalf(const std::byte* from) {
  return Make([&](int lane) {
    const auto native = LoadNative<NativeU16>(from + 2 * lane);
#if defined(__AVX512F__)
    return (NativeF32)_mm512_cvtph_ps((__m256i)native);
#elif defined(__F16C__)
    return (NativeF32)_mm256_cvtph_ps((__m128i)native);
#elif defined(__aarch64__)
    return (NativeF32)vcvt_f32_f16((float16x4_t)native);
#else
    const NativeU32 bits = __builtin_convertvector(native, NativeU32);
    const NativeF32 magnitude = (NativeF32)((bits & 0x7fffu) << 13) * 0x1p112f;
    const NativeU32 special = (NativeU32)((bits & 0x7c00u) == 0x7c00u) & 0x7fc00000u;
    return (NativeF32)((NativeU32)magnitude | ((bits & 0x8000u) << 16) | special);
#endif
  });
}

// By intrinsics: gcc 12 takes conversions from short integers apart.
inline F32x16 LoadCachedBf16(const std::byte* from) {
  return Make([&](int lane) {
#if defined(__AVX512F__)
    const auto native = LoadNative<NativeU16>(from + 2 * lane);
    const auto wide = (NativeU32)_mm512_cvtepu16_epi32((__m256i)native);
#elif defined(__AVX2__)
    const auto native = LoadNative<NativeU16>(from + 2 * lane);
    const auto wide = (NativeU32)_mm256_cvtepu16_epi32((__m128i)native);
#else
    const NativeU32 wide = Widen(from + 2 * lane);
#endif
    return (NativeF32)(wide << 16);
  });
}

// Values [i, i + 16) of a row of `dim`, all inside; i is a multiple of sixteen.
template <CacheType kType>
inline F32x16 LoadCached(const std::byte* row, [[maybe_unused]] int64_t dim, int64_t i) {
  if constexpr (kType == CacheType::kF32) {
    return Make([&](int lane) { return LoadNative<NativeF32>(row + 4 * (i + lane)); });
  } else if constexpr (kType == CacheType::kBF16) {
    return LoadCachedBf16(row + 2 * i);
  } else if constexpr (kType == CacheType::kF16) {
    return LoadCachedHalf(row + 2 * i);
  } else {
    float scale;
    std::memcpy(&scale, row + CacheScalesAt(dim) + i / kCacheBlock * 4, sizeof(scale));
    return BytesToFloat(reinterpret_cast<const int8_t*>(row + i)) * Splat(scale);
  }
}

// Values [i, dim), fewer than sixteen, zeros behind them.
template <CacheType kType>
inline F32x16 LoadCachedPart(const std::byte* row, int64_t dim, int64_t i) {
  std::byte padded[kLanes * sizeof(float) + 8] = {};
  constexpr int64_t kBytes = kType == CacheType::kF32 ? 4 : kType == CacheType::kQ8 ? 1 : 2;
  std::memcpy(padded, row + kBytes * i, static_cast<size_t>(kBytes * (dim - i)));
  if constexpr (kType == CacheType::kQ8) {
    std::memcpy(padded + kLanes, row + CacheScalesAt(dim) + i / kCacheBlock * 4, sizeof(float));
  }
  return LoadCached<kType>(padded, kLanes, 0);
}

#if defined(__AVX512F__)
// The shuffles under a full mask: gcc 12 warns about those without.
template <int kChoice>
inline __m512 Quarters(__m512 x, __m512 y) {
  return _mm512_maskz_shuffle_f32x4(0xffff, x, y, kChoice);
}
template <int kChoice>
inline __m512 Lanes(__m512 x, __m512 y) {
  return _mm512_maskz_shuffle_ps(0xffff, x, y, kChoice);
}

// to[h * stride + t] = scale * SumLanes(sums[h][t]): SumLanes' additions, sixteen at a time.
inline void StoreFourByFour(const F32x16 (&sums)[4][4], float scale, float* to, int64_t stride) {
  // The steps below bring the i-th of sixteen vectors to quarter kPlace[i / 4] of the result, and
  // there to lane kPlace[i % 4].
  constexpr int kPlace[4] = {0, 2, 1, 3};
  const auto sum = [&](int i) { return (__m512)sums[kPlace[i / 4]][kPlace[i % 4]].a; };
  // Halves of eight.
  __m512 eights[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 x = sum(i), y = sum(i + 8);
    eights[i] = _mm512_add_ps(Quarters<0x44>(x, y), Quarters<0xee>(x, y));
  }
  // Halves of four: a quarter of each of four sums.
  __m512 fours[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 x = eights[i], y = eights[i + 4];
    fours[i] = _mm512_add_ps(Quarters<0x88>(x, y), Quarters<0xdd>(x, y));
  }
  // Lanes 0 + 2 and 1 + 3 of each quarter, then those two.
  __m512 twos[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    const __m512 x = fours[i], y = fours[i + 2];
    twos[i] = _mm512_add_ps(Lanes<0x44>(x, y), Lanes<0xee>(x, y));
  }
  const __m512 all =
      _mm512_mul_ps(_mm512_add_ps(Lanes<0x88>(twos[0], twos[1]), Lanes<0xdd>(twos[0], twos[1])),
                    _mm512_set1_ps(scale));
  float whole[kLanes];
  std::memcpy(whole, &all, sizeof(whole));
  for (int h = 0; h < 4; ++h) std::memcpy(to + h * stride, whole + 4 * h, 4 * sizeof(float));
}
#endif

}  // namespace
}  // namespace lockstep::kernels
