// The quantized products for ARM with the dot product instructions, compiled with their flags
// (cmake/kernels.cmake).
#if defined(__ARM_FEATURE_DOTPROD)
#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace lockstep::kernels {
namespace {
constexpr int kQuantizedTileRows = 4;
}  // namespace
}  // namespace lockstep::kernels

#include "runtime/kernels/cpu/quantized_inl.h"

namespace lockstep::kernels {

const QuantizedKernels* NeonDotQuantized() {
  static constexpr QuantizedKernels kernels = MakeQuantized("dotprod");
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return (getauxval(AT_HWCAP) & kDotProduct) != 0 ? &kernels : nullptr;
#else
  return &kernels;  // every Mac with an ARM processor
#endif
}

}  // namespace lockstep::kernels
#else
#include "runtime/kernels/cpu/quantized.h"

namespace lockstep::kernels {
const QuantizedKernels* NeonDotQuantized() { return nullptr; }
}  // namespace lockstep::kernels
#endif
