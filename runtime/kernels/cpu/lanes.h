// Sixteen float32 lanes on every instruction set, through the compilers' vector extensions: one zmm
// register, two ymm, four NEON or SSE registers. Sums run in these sixteen lanes and are folded by
// one fixed tree, so the addition order, and with fused multiply-add the bits, are the same
// wherever the code runs (docs/adr, docs/numerics.md).
//
// Included only by the isa_*.cc files, each compiled for its own instruction set: everything here
// has internal linkage, so that no function compiled for a newer processor can be picked by the
// linker for an older one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lockstep::kernels {
namespace {

constexpr int64_t kLanes = 16;

// Lanes that one register of this instruction set holds.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLanes / kWidth;

typedef float NativeF32 __attribute__((vector_size(kWidth * 4)));
typedef int32_t NativeI32 __attribute__((vector_size(kWidth * 4)));
typedef uint32_t NativeU32 __attribute__((vector_size(kWidth * 4)));
typedef uint16_t NativeU16 __attribute__((vector_size(kWidth * 2)));

// The registers of sixteen lanes as members, not as an array: compilers keep members in registers.
template <int kCount>
struct Registers;
template <>
struct Registers<1> {
  NativeF32 a;
};
template <>
struct Registers<2> {
  NativeF32 a, b;
};
template <>
struct Registers<4> {
  NativeF32 a, b, c, d;
};
using F32x16 = Registers<kParts>;

// Register kPart of `registers`.
template <int kPart, typename Registers>
inline auto& Part(Registers& registers) {
  if constexpr (kPart == 0) return registers.a;
  if constexpr (kPart == 1) return registers.b;
  if constexpr (kPart == 2) return registers.c;
  if constexpr (kPart == 3) return registers.d;
}

// f(lane offset) for every register.
template <typename F>
inline __attribute__((always_inline)) F32x16 Make(const F& f) {
  if constexpr (kParts == 1) return F32x16{f(0)};
  if constexpr (kParts == 2) return F32x16{f(0), f(kWidth)};
  if constexpr (kParts == 4) return F32x16{f(0), f(kWidth), f(2 * kWidth), f(3 * kWidth)};
}

// f(register of every argument) for every register.
template <typename F, typename... Args>
inline __attribute__((always_inline)) F32x16 Map(const F& f, const Args&... x) {
  if constexpr (kParts == 1) return F32x16{f(x.a...)};
  if constexpr (kParts == 2) return F32x16{f(x.a...), f(x.b...)};
  if constexpr (kParts == 4) return F32x16{f(x.a...), f(x.b...), f(x.c...), f(x.d...)};
}

inline F32x16 Splat(float value) {
  return Make([&](int) { return value - NativeF32{}; });
}
inline F32x16 operator+(const F32x16& x, const F32x16& y) {
  return Map([](NativeF32 a, NativeF32 b) { return a + b; }, x, y);
}
inline F32x16 operator-(const F32x16& x, const F32x16& y) {
  return Map([](NativeF32 a, NativeF32 b) { return a - b; }, x, y);
}
inline F32x16 operator*(const F32x16& x, const F32x16& y) {
  return Map([](NativeF32 a, NativeF32 b) { return a * b; }, x, y);
}
inline F32x16 operator*(const F32x16& x, float factor) {
  return Map([=](NativeF32 a) { return a * factor; }, x);
}
#if defined(__AVX512F__)
constexpr const char* kFusedInstruction = "vfmadd zmm, float32";
#elif defined(__FMA__)
constexpr const char* kFusedInstruction = "vfmadd ymm, float32";
#elif defined(__aarch64__)
constexpr const char* kFusedInstruction = "fmla 128 bits, float32";
#elif defined(__SSE2__)
constexpr const char* kFusedInstruction = "mulps and addps xmm, float32";
#else
constexpr const char* kFusedInstruction = "mul and add, float32";
#endif
// x * y + z rounded once, wherever the instruction set can: said with an intrinsic, since of two
// products and a sum compilers fuse whichever they like.
inline NativeF32 FusedNative(NativeF32 x, NativeF32 y, NativeF32 z) {
#if defined(__AVX512F__)
  return (NativeF32)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)z);
#elif defined(__FMA__)
  return (NativeF32)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)z);
#elif defined(__aarch64__)
  return (NativeF32)vfmaq_f32((float32x4_t)z, (float32x4_t)x, (float32x4_t)y);
#else
  return x * y + z;
#endif
}
inline F32x16 Fused(const F32x16& x, const F32x16& y, const F32x16& z) {
  return Map([](NativeF32 a, NativeF32 b, NativeF32 c) { return FusedNative(a, b, c); }, x, y, z);
}
inline F32x16 Max(const F32x16& x, const F32x16& y) {
  return Map([](NativeF32 a, NativeF32 b) { return b > a ? b : a; }, x, y);
}

template <typename Native, typename T>
inline Native LoadNative(const T* from) {
  Native native;
  std::memcpy(&native, from, sizeof(native));
  return native;
}

inline F32x16 Load(const float* from) {
  return Make([&](int lane) { return LoadNative<NativeF32>(from + lane); });
}

// A register at a time: sums whose address is taken, as for one copy of all sixteen lanes, gcc
// keeps in memory, and writes there in every step of the loop that adds to them.
template <int kPart = 0>
inline void Store(const F32x16& lanes, float* to) {
  if constexpr (kPart < kParts) {
    const NativeF32 native = Part<kPart>(lanes);
    std::memcpy(to + kPart * kWidth, &native, sizeof(native));
    Store<kPart + 1>(lanes, to);
  }
}

// The first `count` (< 16) values, zeros behind them.
inline F32x16 LoadPart(const float* from, int64_t count) {
  float padded[kLanes] = {};
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(float));
  return Load(padded);
}

inline void StorePart(const F32x16& lanes, float* to, int64_t count) {
  float whole[kLanes];
  Store(lanes, whole);
  std::memcpy(to, whole, static_cast<size_t>(count) * sizeof(float));
}

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};
struct Fp8 {  // e4m3
  uint8_t bits;
};

// Numbers of panels lie at any address, so they are reached as bytes.
template <typename T>
inline const std::byte* BytesAt(const T* from, int lane) {
  return reinterpret_cast<const std::byte*>(from) + static_cast<size_t>(lane) * sizeof(T);
}

// By intrinsics on ARM, here and below: gcc 12 takes conversions of narrow vectors apart.
inline NativeU32 Widen(const std::byte* from) {
#if defined(__aarch64__)
  return (NativeU32)vmovl_u16((uint16x4_t)LoadNative<NativeU16>(from));
#else
  return __builtin_convertvector(LoadNative<NativeU16>(from), NativeU32);
#endif
}

inline F32x16 LoadWide(const float* from) { return Load(from); }
inline F32x16 LoadWide(const Bf16* from) {
  return Make([&](int lane) { return (NativeF32)(Widen(BytesAt(from, lane)) << 16); });
}
// Finite halves only (the loader refuses others): exact, subnormals included.
inline F32x16 LoadWide(const Half* from) {
  return Make([&](int lane) {
#if defined(__AVX512F__)
    return (NativeF32)_mm512_cvtph_ps((__m256i)LoadNative<NativeU16>(BytesAt(from, lane)));
#elif defined(__F16C__)
    return (NativeF32)_mm256_cvtph_ps((__m128i)LoadNative<NativeU16>(BytesAt(from, lane)));
#elif defined(__aarch64__)
    return (NativeF32)vcvt_f32_f16((float16x4_t)LoadNative<NativeU16>(BytesAt(from, lane)));
#else
    const NativeU32 bits = Widen(BytesAt(from, lane));
    const NativeF32 magnitude = (NativeF32)((bits & 0x7fffu) << 13) * 0x1p112f;
    return (NativeF32)((NativeU32)magnitude | ((bits & 0x8000u) << 16));
#endif
  });
}

// A 256th of the numbers, exactly: what a half with the same bits of exponent and mantissa is. The
// byte is widened with its sign, so that one shift and one mask put sign and magnitude in place.
// Finite numbers only (the loader refuses others).
inline F32x16 LoadWide(const Fp8* from) {
  return Make([&](int lane) {
#if defined(__AVX512F__)
    const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)(from + lane)));
    const __m256i half =
        _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(-0x4080));  // 0xbf80
    return (NativeF32)_mm512_cvtph_ps(half);
#elif defined(__F16C__)
    const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64((const __m128i*)(from + lane)));
    const __m128i half = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(-0x4080));
    return (NativeF32)_mm256_cvtph_ps(half);
#elif defined(__aarch64__)
    const int8x8_t four = vcreate_s8(LoadNative<uint32_t>(from + lane));
    const int16x4_t half = vand_s16(vget_low_s16(vshll_n_s8(four, 7)), vdup_n_s16(-0x4080));
    return (NativeF32)vcvt_f32_f16((float16x4_t)half);
#else
    typedef uint8_t Bytes __attribute__((vector_size(kWidth)));
    const NativeU32 bits = __builtin_convertvector(LoadNative<Bytes>(from + lane), NativeU32);
    const NativeF32 magnitude = (NativeF32)((bits & 0x7fu) << 20) * 0x1p112f;
    return (NativeF32)((NativeU32)magnitude | ((bits & 0x80u) << 24));
#endif
  });
}

typedef float FourF32 __attribute__((vector_size(16)));
typedef float EightF32 __attribute__((vector_size(32)));
inline FourF32 AddHalves(EightF32 x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
}
template <typename Lanes>
inline FourF32 SumsOfFour(const Lanes& x) {
  if constexpr (kParts == 4) return (x.a + x.c) + (x.b + x.d);
  if constexpr (kParts == 2) return AddHalves(x.a + x.b);
  if constexpr (kParts == 1) {
    EightF32 halves[2];
    std::memcpy(halves, &x, sizeof(halves));
    return AddHalves(halves[0] + halves[1]);
  }
}
// The one order in which sixteen lanes are added: eight and eight, four and four, then two and two.
inline float SumLanes(const F32x16& lanes) {
  const FourF32 four = SumsOfFour(lanes);
  return (four[0] + four[2]) + (four[1] + four[3]);
}
// The sums of four times sixteen lanes, each as above.
inline FourF32 SumLanes(const F32x16& x, const F32x16& y, const F32x16& z, const F32x16& w) {
  const auto by_twos = [](FourF32 a, FourF32 b) {
    return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  };
  const FourF32 xy = by_twos(SumsOfFour(x), SumsOfFour(y));
  const FourF32 zw = by_twos(SumsOfFour(z), SumsOfFour(w));
  return __builtin_shufflevector(xy, zw, 0, 2, 4, 6) + __builtin_shufflevector(xy, zw, 1, 3, 5, 7);
}

inline float MaxLanes(const F32x16& lanes) {
  float part[kLanes];
  Store(lanes, part);
  float highest = part[0];
  for (int i = 1; i < 16; ++i) highest = part[i] > highest ? part[i] : highest;
  return highest;
}

// e^x within 2 ulp; 0 below -87 and e^88 above 88. Range reduction by ln 2 in two parts, then the
// polynomial of Cephes' expf (S. Moshier, netlib), rewritten for lanes.
inline NativeF32 ExpNative(NativeF32 x) {
  const NativeI32 tiny = x < -87.0f;
  const NativeF32 low = tiny ? NativeF32{} - 87.0f : x;
  const NativeF32 clamped = low > 88.0f ? NativeF32{} + 88.0f : low;
  const auto all = [](float value) { return value - NativeF32{}; };
  const NativeF32 shifted =  // 1.5 * 2^23: rounds to nearest
      FusedNative(clamped, all(1.44269504088896341f), all(12582912.0f));
  const NativeF32 n = shifted - 12582912.0f;
  const NativeF32 r =
      FusedNative(n, all(2.12194440e-4f), FusedNative(n, all(-0.693359375f), clamped));
  NativeF32 p = FusedNative(r, all(1.9875691500e-4f), all(1.3981999507e-3f));
  p = FusedNative(p, r, all(8.3334519073e-3f));
  p = FusedNative(p, r, all(4.1665795894e-2f));
  p = FusedNative(p, r, all(1.6666665459e-1f));
  p = FusedNative(p, r, all(5.0000001201e-1f));
  p = FusedNative(p, r * r, r) + 1.0f;
  const NativeI32 exponent = __builtin_convertvector(n, NativeI32) << 23;
  const NativeF32 scaled = (NativeF32)((NativeI32)p + exponent);
  return tiny ? NativeF32{} : scaled;
}

inline F32x16 Exp(const F32x16& x) {
  return Map([](NativeF32 a) { return ExpNative(a); }, x);
}

inline F32x16 Sigmoid(const F32x16& x) {
  return Map([](NativeF32 a) { return 1.0f / (1.0f + ExpNative(-a)); }, x);
}

}  // namespace
}  // namespace lockstep::kernels
