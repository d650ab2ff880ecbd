#include "launcher/simulate/router.h"

#include "runtime/base/split_mix.h"

namespace lockstep {

int Router::Choose(int64_t group) const {
  const size_t count = outstanding_.size();
  size_t least = (last_ + 1) % count;
  for (size_t i = 2; i <= count; ++i) {
    const size_t one = (last_ + i) % count;
    if (outstanding_[one] < outstanding_[least]) least = one;
  }
  if (affinity_ && group >= 0) {
    const auto home =
        static_cast<size_t>(MixBits(static_cast<uint64_t>(group) + kGoldenGamma) % count);
    if (outstanding_[home] <= outstanding_[least] + kPatience) return static_cast<int>(home);
  }
  return static_cast<int>(least);
}

}  // namespace lockstep
