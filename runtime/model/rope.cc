#include "runtime/model/rope.h"

#include <cmath>

namespace lockstep {

void RotaryAngles(double theta, int64_t rotary_dim, std::span<const int32_t> positions,
                  float* cosines, float* sines) {
  const int64_t half = rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const auto exponent = static_cast<float>(2 * i) / static_cast<float>(rotary_dim);
    const float frequency =
        1.0f / static_cast<float>(std::pow(theta, static_cast<double>(exponent)));
    for (size_t row = 0; row < positions.size(); ++row) {
      const float angle = static_cast<float>(positions[row]) * frequency;
      const size_t at = row * static_cast<size_t>(half) + static_cast<size_t>(i);
      cosines[at] = static_cast<float>(std::cos(static_cast<double>(angle)));
      sines[at] = static_cast<float>(std::sin(static_cast<double>(angle)));
    }
  }
}

}  // namespace lockstep
