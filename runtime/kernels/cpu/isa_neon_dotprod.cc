// The quantized products for ARM with the dot product instructions, compiled with their flags
// (cmake/kernels.cmake).
#include "runtime/base/os.h"
#if defined(__ARM_FEATURE_DOTPROD)
namespace lockstep::kernels {
namespace {
constexpr int kQuantizedTileRows = 4;
}  // namespace
}  // namespace lockstep::kernels

#include "runtime/kernels/cpu/quantized_inl.h"

namespace lockstep::kernels {

const QuantizedKernels* NeonDotQuantized() {
  static constexpr QuantizedKernels kernels = MakeQuantized("dotprod");
  return os::HasArmDotProducts() ? &kernels : nullptr;
}

}  // namespace lockstep::kernels
#else
#include "runtime/kernels/cpu/quantized.h"

namespace lockstep::kernels {
const QuantizedKernels* NeonDotQuantized() { return nullptr; }
}  // namespace lockstep::kernels
#endif
