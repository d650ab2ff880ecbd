// Sixteen float32 lanes on every instruction set, through the compilers' vector extensions: one zmm register, two ymm,
// four NEON registers. Sums run in these sixteen lanes and are folded by one fixed tree, so the addition order, and with
// fused multiply-add the bits, are the same wherever the code runs (docs/adr, docs/numerics.md).
//
// Included only by the isa_*.cc files, each compiled for its own instruction set: everything here has internal
// linkage, so that no function compiled for a newer processor can be picked by the linker for an older one.
#pragma once

#include <cstdint>
#include <cstring>

namespace lockstep::kernels {
namespace {

constexpr int64_t kLanes = 16;

typedef float F32x16 __attribute__((vector_size(64)));
typedef int32_t I32x16 __attribute__((vector_size(64)));
typedef uint32_t U32x16 __attribute__((vector_size(64)));
typedef uint16_t U16x16 __attribute__((vector_size(32)));

inline F32x16 Splat(float value) { return value - F32x16{}; }

inline F32x16 Load(const float* from) {
  F32x16 lanes;
  std::memcpy(&lanes, from, sizeof(lanes));
  return lanes;
}

// The first `count` (< 16) values, zeros behind them.
inline F32x16 LoadPart(const float* from, int64_t count) {
  F32x16 lanes = {};
  std::memcpy(&lanes, from, static_cast<size_t>(count) * sizeof(float));
  return lanes;
}

inline void Store(F32x16 lanes, float* to) { std::memcpy(to, &lanes, sizeof(lanes)); }

inline void StorePart(F32x16 lanes, float* to, int64_t count) {
  std::memcpy(to, &lanes, static_cast<size_t>(count) * sizeof(float));
}

struct Bf16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

inline U32x16 Widen(const void* from) {
  U16x16 narrow;
  std::memcpy(&narrow, from, sizeof(narrow));
  return __builtin_convertvector(narrow, U32x16);
}

inline F32x16 LoadWide(const float* from) { return Load(from); }
inline F32x16 LoadWide(const Bf16* from) { return (F32x16)(Widen(from) << 16); }
// Finite halves only (the loader refuses others): exact, subnormals included.
inline F32x16 LoadWide(const Half* from) {
  const U32x16 bits = Widen(from);
  const F32x16 magnitude = (F32x16)((bits & 0x7fffu) << 13) * 0x1p112f;
  return (F32x16)((U32x16)magnitude | ((bits & 0x8000u) << 16));
}

// The one order in which sixteen lanes are added.
inline float SumLanes(F32x16 lanes) {
  float part[16];
  std::memcpy(part, &lanes, sizeof(part));
  for (int i = 0; i < 8; ++i) part[i] += part[i + 8];
  for (int i = 0; i < 4; ++i) part[i] += part[i + 4];
  return (part[0] + part[2]) + (part[1] + part[3]);
}

inline float MaxLanes(F32x16 lanes) {
  float part[16];
  std::memcpy(part, &lanes, sizeof(part));
  float highest = part[0];
  for (int i = 1; i < 16; ++i) highest = part[i] > highest ? part[i] : highest;
  return highest;
}

// e^x within 2 ulp; 0 below -87 and e^88 above 88. Range reduction by ln 2 in two parts, then the polynomial of
// Cephes' expf (S. Moshier, netlib), rewritten for lanes.
inline F32x16 Exp(F32x16 x) {
  const I32x16 tiny = x < -87.0f;
  const F32x16 low = tiny ? Splat(-87.0f) : x;
  const F32x16 clamped = low > 88.0f ? Splat(88.0f) : low;
  const F32x16 shifted = clamped * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to nearest
  const F32x16 n = shifted - 12582912.0f;
  const F32x16 r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  F32x16 p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const I32x16 exponent = __builtin_convertvector(n, I32x16) << 23;
  const F32x16 scaled = (F32x16)((I32x16)p + exponent);
  return tiny ? F32x16{} : scaled;
}

inline F32x16 Sigmoid(F32x16 x) { return 1.0f / (1.0f + Exp(-x)); }

}  // namespace
}  // namespace lockstep::kernels
