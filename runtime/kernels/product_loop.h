// What a core can do at most: a loop that repeats one kind of product in registers alone.
#pragma once

#include <cstdint>

namespace lockstep::kernels {

struct ProductLoop {
  const char* instruction;         // "vpdpbusd zmm"
  void (*run)(int64_t rounds);     // on the calling thread; null: on no thread of the host
  int64_t operations_a_round = 0;  // a multiplication and an addition are two
};

// Sums that do not wait for each other: more than the latency of any multiplication.
inline constexpr int kLoopSums = 12;

// sum = product(sum, w, x) for all sums, `rounds` times. The empty asm statements hide from the
// compiler that all products are alike, and that all sums begin alike: gcc would keep them in
// memory.
template <typename Sum, typename W, typename X, typename Product>
inline __attribute__((always_inline)) void RepeatProduct(int64_t rounds, const Product& product) {
#if defined(__x86_64__)
#define LOCKSTEP_HIDE(value) asm volatile("" : "+v"(value))
#elif defined(__aarch64__)
#define LOCKSTEP_HIDE(value) asm volatile("" : "+w"(value))
#else
#define LOCKSTEP_HIDE(value) asm volatile("" : "+m"(value))
#endif
  Sum sums[kLoopSums] = {};
  W w = {};
  X x = {};
  LOCKSTEP_HIDE(x);
#pragma GCC unroll 12
  for (Sum& sum : sums) LOCKSTEP_HIDE(sum);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 12
    for (Sum& sum : sums) {
      LOCKSTEP_HIDE(w);
      sum = product(sum, w, x);
    }
  }
#pragma GCC unroll 12
  for (Sum& sum : sums) LOCKSTEP_HIDE(sum);
#undef LOCKSTEP_HIDE
}

}  // namespace lockstep::kernels
