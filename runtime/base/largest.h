// The largest number for which something holds.
#pragma once

#include <cstdint>

namespace lockstep {

// The largest value in [lowest, highest] for which `fits` holds; lowest - 1 if none. `fits` is
// monotone: where it holds, it holds for all below.
template <typename Fits>
int64_t LargestThatFits(int64_t lowest, int64_t highest, const Fits& fits) {
  while (lowest <= highest) {
    const int64_t middle = lowest + (highest - lowest) / 2;
    if (fits(middle)) {
      lowest = middle + 1;
    } else {
      highest = middle - 1;
    }
  }
  return highest;
}

}  // namespace lockstep
