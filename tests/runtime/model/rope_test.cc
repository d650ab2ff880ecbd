#include "runtime/model/rope.h"

#include <cmath>

#include "gtest/gtest.h"
#include "tests/support/golden.h"

namespace lockstep {
namespace {

TEST(RotaryAngles, EqualTransformersFloat32AnglesUpToTheLongestContext) {
  const testing::Golden golden(testing::SourcePath("tests/goldens/kernels/rope_cases.safetensors"));
  const auto positions = golden.Ids("positions");
  for (const auto& [name, theta, dim] :
       {std::tuple{"glm47", 1e6, 64}, {"air", 1e6, 64}, {"small", 1e4, 8}}) {
    const auto want_cosines = golden.Floats(std::string(name) + ".cos_f32");
    const auto want_sines = golden.Floats(std::string(name) + ".sin_f32");
    std::vector<float> cosines(want_cosines.size()), sines(want_sines.size());
    RotaryAngles(theta, dim, positions, cosines.data(), sines.data());
    for (size_t i = 0; i < cosines.size(); ++i) {
      // One unit in the last place of the largest angle (202751) is 0.016; frequencies agree to the
      // last bit or two.
      const double position = positions[i / static_cast<size_t>(dim / 2)];
      EXPECT_NEAR(cosines[i], want_cosines[i], 2e-7 + 1.2e-7 * position) << name << " " << i;
      EXPECT_NEAR(sines[i], want_sines[i], 2e-7 + 1.2e-7 * position) << name << " " << i;
    }
  }
}

}  // namespace
}  // namespace lockstep
