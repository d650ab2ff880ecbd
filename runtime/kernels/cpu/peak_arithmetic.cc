// The peak of arithmetic: loops over registers alone, for every instruction that products are made
// of here.
#include <algorithm>

#include "runtime/base/clock.h"
#include "runtime/kernels/cpu/quantized.h"
#include "runtime/kernels/roofline.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lockstep::kernels {
namespace {

// Registers that are summed into independently: more than the latency of any multiplication.
constexpr int kSums = 12;

// A loop that multiplies `rounds` * kSums times; `operations` of one of them.
struct PeakLoop {
  const char* instruction;
  void (*run)(int64_t rounds);
  int64_t operations;
};

// The empty asm statements hide from the compiler that all products are alike.
#define LOCKSTEP_PEAK_LOOP(Register, constraint, zero, step)   \
  Register sums[kSums], w = zero, x = zero;                    \
  for (Register & sum : sums) sum = zero;                      \
  asm volatile("" : "+" constraint(x));                        \
  for (int64_t round = 0; round < rounds; ++round) {           \
    _Pragma("GCC unroll 12") for (int i = 0; i < kSums; ++i) { \
      asm volatile("" : "+" constraint(w));                    \
      sums[i] = step(sums[i]);                                 \
    }                                                          \
  }                                                            \
  for (Register & sum : sums) asm volatile("" : "+" constraint(sum))

#if defined(__x86_64__)
__attribute__((target("avx512f,avx512bw,avx512vl,avx512vnni"))) void LoopVnni(int64_t rounds) {
#define LOCKSTEP_STEP(sum) _mm512_dpbusd_epi32(sum, w, x)
  LOCKSTEP_PEAK_LOOP(__m512i, "v", _mm512_setzero_si512(), LOCKSTEP_STEP);
#undef LOCKSTEP_STEP
}
__attribute__((target("avx512f,avx512bw"))) void LoopBytes512(int64_t rounds) {
  const __m512i ones = _mm512_set1_epi16(1);
#define LOCKSTEP_STEP(sum) \
  _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), ones))
  LOCKSTEP_PEAK_LOOP(__m512i, "v", _mm512_setzero_si512(), LOCKSTEP_STEP);
#undef LOCKSTEP_STEP
}
__attribute__((target("avx2"))) void LoopBytes256(int64_t rounds) {
  const __m256i ones = _mm256_set1_epi16(1);
#define LOCKSTEP_STEP(sum) \
  _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones))
  LOCKSTEP_PEAK_LOOP(__m256i, "x", _mm256_setzero_si256(), LOCKSTEP_STEP);
#undef LOCKSTEP_STEP
}
__attribute__((target("avx512f"))) void LoopFma512(int64_t rounds) {
#define LOCKSTEP_STEP(sum) _mm512_fmadd_ps(w, x, sum)
  LOCKSTEP_PEAK_LOOP(__m512, "v", _mm512_setzero_ps(), LOCKSTEP_STEP);
#undef LOCKSTEP_STEP
}
__attribute__((target("avx2,fma"))) void LoopFma256(int64_t rounds) {
#define LOCKSTEP_STEP(sum) _mm256_fmadd_ps(w, x, sum)
  LOCKSTEP_PEAK_LOOP(__m256, "x", _mm256_setzero_ps(), LOCKSTEP_STEP);
#undef LOCKSTEP_STEP
}
void LoopSse(int64_t rounds) {
#define LOCKSTEP_STEP(sum) _mm_add_ps(sum, _mm_mul_ps(w, x))
  LOCKSTEP_PEAK_LOOP(__m128, "x", _mm_setzero_ps(), LOCKSTEP_STEP);
#undef LOCKSTEP_STEP
}
#elif defined(__aarch64__)
// Spelled out, since compilers do not agree on how a function asks for the instruction.
int32x4_t Sdot(int32x4_t sum, int32x4_t w, int32x4_t x) {
  asm(".arch armv8.2-a+dotprod\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sum) : "w"(w), "w"(x));
  return sum;
}
void LoopDot(int64_t rounds) {
#define LOCKSTEP_STEP(sum) Sdot(sum, w, x)
  LOCKSTEP_PEAK_LOOP(int32x4_t, "w", vdupq_n_s32(0), LOCKSTEP_STEP);
#undef LOCKSTEP_STEP
}
void LoopNeonFma(int64_t rounds) {
#define LOCKSTEP_STEP(sum) vfmaq_f32(sum, w, x)
  LOCKSTEP_PEAK_LOOP(float32x4_t, "w", vdupq_n_f32(0), LOCKSTEP_STEP);
#undef LOCKSTEP_STEP
}
#else
typedef float Floats __attribute__((vector_size(16)));
void LoopPlain(int64_t rounds) {
#define LOCKSTEP_STEP(sum) (sum + w * x)
  LOCKSTEP_PEAK_LOOP(Floats, "m", Floats{}, LOCKSTEP_STEP);
#undef LOCKSTEP_STEP
}
#endif
#undef LOCKSTEP_PEAK_LOOP

PeakLoop LoopOf(std::string_view backend) {
  const auto has = [&](std::string_view part) {
    return backend.find(part) != std::string_view::npos;
  };
  const bool bytes = has("+q8");
#if defined(__x86_64__)
  // The table of floats is one for AVX-512 with and without VNNI, and so is the name.
  if (bytes && has("avx512") && __builtin_cpu_supports("avx512vnni"))
    return {"vpdpbusd zmm", LoopVnni, 128};
  if (bytes && has("avx512")) return {"vpmaddubsw, vpmaddwd and vpaddd zmm", LoopBytes512, 128};
  if (bytes && has("avx2")) return {"vpmaddubsw, vpmaddwd and vpaddd ymm", LoopBytes256, 64};
  if (has("avx512")) return {"vfmadd zmm, float32", LoopFma512, 32};
  if (has("avx2")) return {"vfmadd ymm, float32", LoopFma256, 16};
  return {"mulps and addps xmm, float32", LoopSse, 8};
#elif defined(__aarch64__)
  if (bytes && NeonDotQuantized() != nullptr) return {"sdot 128 bits", LoopDot, 32};
  return {"fmla 128 bits, float32", LoopNeonFma, 8};
#else
  (void)bytes;
  return {"mul and add, float32", LoopPlain, 8};
#endif
}

}  // namespace

PeakArithmetic MeasurePeak(std::string_view backend, ThreadPool& pool) {
  constexpr int kPasses = 5;
  constexpr int64_t kRounds = 1'000'000;  // some milliseconds
  const PeakLoop loop = LoopOf(backend);
  PeakArithmetic peak{loop.instruction, 0};
  for (int pass = 0; pass < kPasses; ++pass) {
    const int64_t start_ns = NowNs();
    pool.ParallelFor(pool.count(), 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) loop.run(kRounds);
    });
    const auto operations = static_cast<double>(kRounds * kSums * loop.operations * pool.count());
    peak.gop_per_s = std::max(peak.gop_per_s, operations / static_cast<double>(NowNs() - start_ns));
  }
  return peak;
}

}  // namespace lockstep::kernels
