// Sixteen 32-bit integers, or four times sixteen bytes, next to the float lanes of lanes.h; and the
// products of bytes, which every instruction set has in another shape.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "runtime/kernels/cpu/lanes.h"

namespace lockstep::kernels {
namespace {

typedef uint8_t QuarterU8 __attribute__((vector_size(kWidth)));
typedef int8_t QuarterI8 __attribute__((vector_size(kWidth)));

template <typename Native, int kCount>
struct IntRegisters;
template <typename Native>
struct IntRegisters<Native, 1> {
  Native a;
};
template <typename Native>
struct IntRegisters<Native, 2> {
  Native a, b;
};
template <typename Native>
struct IntRegisters<Native, 4> {
  Native a, b, c, d;
};
using I32x16 = IntRegisters<NativeI32, kParts>;
using U32x16 = IntRegisters<NativeU32, kParts>;  // or four bytes per lane

template <typename To, typename F>
inline __attribute__((always_inline)) To MakeAs(const F& f) {
  if constexpr (kParts == 1) return To{f(0)};
  if constexpr (kParts == 2) return To{f(0), f(kWidth)};
  if constexpr (kParts == 4) return To{f(0), f(kWidth), f(2 * kWidth), f(3 * kWidth)};
}

template <typename To, typename F, typename... Args>
inline __attribute__((always_inline)) To MapAs(const F& f, const Args&... x) {
  constexpr size_t kCount = sizeof(To) / sizeof(NativeI32);
  if constexpr (kCount == 1) return To{f(x.a...)};
  if constexpr (kCount == 2) return To{f(x.a...), f(x.b...)};
  if constexpr (kCount == 4) return To{f(x.a...), f(x.b...), f(x.c...), f(x.d...)};
}

inline U32x16 LoadWords(const std::byte* from) {
  return MakeAs<U32x16>([&](int lane) { return LoadNative<NativeU32>(from + 4 * lane); });
}
inline I32x16 SplatInt(int32_t value) {
  return MakeAs<I32x16>([&](int) { return value - NativeI32{}; });
}
template <int kCount>
using WordRegisters = IntRegisters<NativeU32, kCount>;
template <int kCount>
inline WordRegisters<kCount> operator|(const WordRegisters<kCount>& x,
                                       const WordRegisters<kCount>& y) {
  return MapAs<WordRegisters<kCount>>([](NativeU32 a, NativeU32 b) { return a | b; }, x, y);
}
template <int kCount>
inline WordRegisters<kCount> operator&(const WordRegisters<kCount>& x, uint32_t mask) {
  return MapAs<WordRegisters<kCount>>([=](NativeU32 a) { return a & mask; }, x);
}
// Left for positive distances, right for negative ones.
template <int kDistance, int kCount>
inline WordRegisters<kCount> Shift(const WordRegisters<kCount>& x) {
  if constexpr (kDistance >= 0) {
    return MapAs<WordRegisters<kCount>>([](NativeU32 a) { return a << kDistance; }, x);
  } else {
    return MapAs<WordRegisters<kCount>>([](NativeU32 a) { return a >> -kDistance; }, x);
  }
}
inline F32x16 ToFloat(const I32x16& x) {
  return MapAs<F32x16>([](NativeI32 a) { return __builtin_convertvector(a, NativeF32); }, x);
}
// kWidth bytes as 32-bit integers. By intrinsics: gcc 12 takes conversions from bytes apart.
inline NativeI32 WidenNative(const uint8_t* from) {
#if defined(__AVX512F__)
  return (NativeI32)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
  return (NativeI32)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)from));
#elif defined(__aarch64__)
  const uint8x8_t four = vcreate_u8(LoadNative<uint32_t>(from));
  return (NativeI32)vmovl_u16(vget_low_u16(vmovl_u8(four)));
#else
  return __builtin_convertvector(LoadNative<QuarterU8>(from), NativeI32);
#endif
}
inline NativeI32 WidenNative(const int8_t* from) {
#if defined(__AVX512F__)
  return (NativeI32)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)from));
#elif defined(__AVX2__)
  return (NativeI32)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)from));
#elif defined(__aarch64__)
  const int8x8_t four = vcreate_s8(LoadNative<uint32_t>(from));
  return (NativeI32)vmovl_s16(vget_low_s16(vmovl_s8(four)));
#else
  return __builtin_convertvector(LoadNative<QuarterI8>(from), NativeI32);
#endif
}
template <typename Byte>
inline F32x16 BytesToFloat(const Byte* from) {
  return Make(
      [&](int lane) { return __builtin_convertvector(WidenNative(from + lane), NativeF32); });
}
inline U32x16 WidenBytes(const uint8_t* from) {
  return MakeAs<U32x16>([&](int lane) { return (NativeU32)WidenNative(from + lane); });
}
inline F32x16 AsFloat(const U32x16& x) {
  return MapAs<F32x16>([](NativeU32 a) { return (NativeF32)a; }, x);
}

// The magnitudes' bits, which compare like the magnitudes.
inline I32x16 MagnitudeBits(const F32x16& x) {
  return MapAs<I32x16>([](NativeF32 a) { return (NativeI32)a & 0x7fffffff; }, x);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
// `combine` of all eight lanes.
template <typename Combine>
inline int32_t ReduceEight(__m256i x, const Combine& combine) {
  __m128i four = combine(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  four = combine(four, _mm_shuffle_epi32(four, 0x4e));
  return _mm_cvtsi128_si32(combine(four, _mm_shuffle_epi32(four, 0xb1)));
}
#endif
inline int32_t MaxInts(const I32x16& x, const I32x16& y) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_epi32(_mm512_max_epi32((__m512i)x.a, (__m512i)y.a));
#elif defined(__AVX2__)
  const __m256i of_x = _mm256_max_epi32((__m256i)x.a, (__m256i)x.b);
  const __m256i of_y = _mm256_max_epi32((__m256i)y.a, (__m256i)y.b);
  return ReduceEight(_mm256_max_epi32(of_x, of_y),
                     [](__m128i a, __m128i b) { return _mm_max_epi32(a, b); });
#else
  const I32x16 both = MapAs<I32x16>([](NativeI32 a, NativeI32 b) { return a > b ? a : b; }, x, y);
  int32_t lanes[kLanes];
  std::memcpy(lanes, &both, sizeof(lanes));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i)
      lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  }
  return lanes[0];
#endif
}
inline int32_t SumInts(const I32x16& x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)x.a);
#elif defined(__AVX2__)
  return ReduceEight(_mm256_add_epi32((__m256i)x.a, (__m256i)x.b),
                     [](__m128i a, __m128i b) { return _mm_add_epi32(a, b); });
#else
  int32_t lanes[kLanes];
  std::memcpy(lanes, &x, sizeof(lanes));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return lanes[0];
#endif
}
// Integers of -128..127.
inline void StoreBytes(const I32x16& x, int8_t* to) {
#if defined(__AVX512F__)
  _mm_storeu_si128((__m128i*)to, _mm512_cvtepi32_epi8((__m512i)x.a));
#elif defined(__AVX2__)
  // Both halves of a register are packed by themselves: their quarters come to lie 0, 2, 1, 3.
  const __m256i shorts = _mm256_packs_epi32((__m256i)x.a, (__m256i)x.b);
  const __m256i ordered = _mm256_permute4x64_epi64(shorts, 0xd8);
  _mm_storeu_si128((__m128i*)to, _mm_packs_epi16(_mm256_castsi256_si128(ordered),
                                                 _mm256_extracti128_si256(ordered, 1)));
#else
  int32_t lanes[kLanes];
  std::memcpy(lanes, &x, sizeof(lanes));
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<int8_t>(lanes[i]);
#endif
}

// Signed bytes enter VNNI plus 128, which the activation block's start takes off again.
#if defined(__AVX512VNNI__)
constexpr int32_t kSignedBytesOffset = 128;
#else
constexpr int32_t kSignedBytesOffset = 0;
#endif

// Whether products of bytes come as 16-bit sums of two, many of which are added before they are
// widened: AVX2 and AVX-512 without VNNI.
#if !defined(__AVX512VNNI__) && (defined(__AVX512BW__) || defined(__AVX2__))
#define LOCKSTEP_PAIR_PRODUCTS 1
#else
#define LOCKSTEP_PAIR_PRODUCTS 0
#endif

#if LOCKSTEP_PAIR_PRODUCTS
// In each 16-bit half of a lane: the two bytes of w times the two bytes of x. Bytes of w are signed
// if kSigned, else 0..63; those of x are -127..127, so nothing saturates.
template <bool kSigned>
inline NativeI32 PairsNative(NativeU32 w, NativeI32 x) {
#if defined(__AVX512BW__)
  __m512i a = (__m512i)w, b = (__m512i)x;
  if constexpr (kSigned) {
    b = _mm512_mask_sub_epi8(b, _mm512_movepi8_mask(a), _mm512_setzero_si512(), b);
    a = _mm512_abs_epi8(a);
  }
  return (NativeI32)_mm512_maddubs_epi16(a, b);
#else
  __m256i a = (__m256i)w, b = (__m256i)x;
  if constexpr (kSigned) {
    b = _mm256_sign_epi8(b, a);
    a = _mm256_abs_epi8(a);
  }
  return (NativeI32)_mm256_maddubs_epi16(a, b);
#endif
}
inline NativeI32 AddPairsNative(NativeI32 x, NativeI32 y) {
#if defined(__AVX512BW__)
  return (NativeI32)_mm512_add_epi16((__m512i)x, (__m512i)y);
#else
  return (NativeI32)_mm256_add_epi16((__m256i)x, (__m256i)y);
#endif
}
// sum[lane] += both halves of the lane.
inline NativeI32 WidenPairsNative(NativeI32 sum, NativeI32 pairs) {
#if defined(__AVX512BW__)
  return sum + (NativeI32)_mm512_madd_epi16((__m512i)pairs, _mm512_set1_epi16(1));
#else
  return sum + (NativeI32)_mm256_madd_epi16((__m256i)pairs, _mm256_set1_epi16(1));
#endif
}
#endif

// sum[lane] += the four bytes of w[lane] times the four bytes of x[lane], as above.
template <bool kSigned>
inline NativeI32 DotNative(NativeI32 sum, NativeU32 w, NativeI32 x) {
#if defined(__AVX512VNNI__)
  if constexpr (kSigned) w ^= 0x80808080u;
  return (NativeI32)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif LOCKSTEP_PAIR_PRODUCTS
  return WidenPairsNative(sum, PairsNative<kSigned>(w, x));
#elif defined(__ARM_FEATURE_DOTPROD)
  return (NativeI32)vdotq_s32((int32x4_t)sum, (int8x16_t)w, (int8x16_t)x);
#elif defined(__SSE2__)
  const __m128i a = (__m128i)w, b = (__m128i)x;
  const __m128i a_even = _mm_srai_epi16(_mm_slli_epi16(a, 8), 8), a_odd = _mm_srai_epi16(a, 8);
  const __m128i b_even = _mm_srai_epi16(_mm_slli_epi16(b, 8), 8), b_odd = _mm_srai_epi16(b, 8);
  return sum + (NativeI32)_mm_madd_epi16(a_even, b_even) + (NativeI32)_mm_madd_epi16(a_odd, b_odd);
#else
  const NativeI32 a = (NativeI32)w;
  sum += ((a << 24) >> 24) * ((x << 24) >> 24);
  sum += ((a << 16) >> 24) * ((x << 16) >> 24);
  sum += ((a << 8) >> 24) * ((x << 8) >> 24);
  return sum + (a >> 24) * (x >> 24);
#endif
}

template <bool kSigned>
inline __attribute__((always_inline)) I32x16 Dot(const I32x16& sum, const U32x16& w, int32_t x) {
  const NativeI32 all = x - NativeI32{};
  return MapAs<I32x16>([=](NativeI32 a, NativeU32 b) { return DotNative<kSigned>(a, b, all); }, sum,
                       w);
}

#if LOCKSTEP_PAIR_PRODUCTS
template <bool kSigned>
inline __attribute__((always_inline)) I32x16 Pairs(const U32x16& w, int32_t x) {
  const NativeI32 all = x - NativeI32{};
  return MapAs<I32x16>([=](NativeU32 a) { return PairsNative<kSigned>(a, all); }, w);
}
inline I32x16 AddPairs(const I32x16& x, const I32x16& y) {
  return MapAs<I32x16>([](NativeI32 a, NativeI32 b) { return AddPairsNative(a, b); }, x, y);
}
inline I32x16 WidenPairs(const I32x16& sum, const I32x16& pairs) {
  return MapAs<I32x16>([](NativeI32 a, NativeI32 b) { return WidenPairsNative(a, b); }, sum, pairs);
}
#endif

// Whether several rows are multiplied by twos (pair_tile_inl.h).
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr bool kRowPairs = true;
// sum[2 r + o] += the eight bytes of row r times the eight of output o.
inline NativeI32 MatrixNative(NativeI32 sum, NativeU32 outputs, NativeI32 rows) {
  return (NativeI32)vmmlaq_s32((int32x4_t)sum, (int8x16_t)rows, (int8x16_t)outputs);
}
#else
constexpr bool kRowPairs = false;
#endif

// What products with several rows repeat, and its instructions.
inline NativeI32 BytesProduct(NativeI32 sum, NativeU32 w, NativeI32 x) {
#if defined(__ARM_FEATURE_MATMUL_INT8)
  return MatrixNative(sum, w, x);
#elif LOCKSTEP_PAIR_PRODUCTS
  return AddPairsNative(sum, PairsNative<false>(w, x));
#else
  return DotNative<false>(sum, w, x);
#endif
}
#if defined(__ARM_FEATURE_MATMUL_INT8)
constexpr const char* kBytesInstruction = "smmla 128 bits";
#elif defined(__AVX512VNNI__)
constexpr const char* kBytesInstruction = "vpdpbusd zmm";
#elif defined(__AVX512BW__)
constexpr const char* kBytesInstruction = "vpmaddubsw and vpaddw zmm";
#elif defined(__AVX2__)
constexpr const char* kBytesInstruction = "vpmaddubsw and vpaddw ymm";
#elif defined(__ARM_FEATURE_DOTPROD)
constexpr const char* kBytesInstruction = "sdot 128 bits";
#elif defined(__SSE2__)
constexpr const char* kBytesInstruction = "pmaddwd and paddd xmm";
#else
constexpr const char* kBytesInstruction = "mla 128 bits";
#endif

// table[byte] for every byte, each 0..15.
inline NativeU32 LookupNative(NativeU32 bytes, const int8_t* table) {
#if defined(__AVX512BW__)
  const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i*)table));
  return (NativeU32)_mm512_shuffle_epi8(all, (__m512i)bytes);
#elif defined(__AVX2__)
  const __m256i all = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i*)table));
  return (NativeU32)_mm256_shuffle_epi8(all, (__m256i)bytes);
#elif defined(__aarch64__)
  return (NativeU32)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)bytes);
#else
  // SSE2 has no way to look up or take out a byte: through memory, and in a loop, since unrolled it
  // was most of what this set's compiler had to do.
  uint8_t values[sizeof(bytes)];
  std::memcpy(values, &bytes, sizeof(bytes));
#pragma GCC unroll 1
  for (uint8_t& value : values) value = static_cast<uint8_t>(table[value]);
  return LoadNative<NativeU32>(values);
#endif
}

template <int kCount>
inline WordRegisters<kCount> Lookup(const WordRegisters<kCount>& bytes, const int8_t* table) {
  return MapAs<WordRegisters<kCount>>([=](NativeU32 a) { return LookupNative(a, table); }, bytes);
}

}  // namespace
}  // namespace lockstep::kernels
