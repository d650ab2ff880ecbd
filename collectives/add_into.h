// The additions of sums over ranks. Plain loops, which the compiler vectorizes: every element is
// added by itself, so that its bits do not depend on the vector width.
#pragma once

#include <cstddef>

namespace lockstep {

inline void AddInto(float* __restrict sum, const float* __restrict a, const float* __restrict b,
                    size_t count) {
  for (size_t i = 0; i < count; ++i) sum[i] = a[i] + b[i];
}
inline void AddInto(float* __restrict sum, const float* __restrict a, size_t count) {
  for (size_t i = 0; i < count; ++i) sum[i] += a[i];
}

}  // namespace lockstep
