// The quantized products for ARM with the matrix product instructions, compiled with their flags
// (cmake/kernels.cmake). A single row takes dot products.
#include "runtime/base/os.h"
#if defined(__ARM_FEATURE_MATMUL_INT8)
namespace lockstep::kernels {
namespace {
constexpr int kQuantizedTileRows = 8;
}  // namespace
}  // namespace lockstep::kernels

#include "runtime/kernels/cpu/quantized_inl.h"

namespace lockstep::kernels {

const QuantizedKernels* NeonI8mmQuantized() {
  static constexpr QuantizedKernels kernels = MakeQuantized("i8mm");
  const bool here = os::HasArmDotProducts() && os::HasArmMatrixProducts();
  return here ? &kernels : nullptr;
}

}  // namespace lockstep::kernels
#else
#include "runtime/kernels/cpu/quantized.h"

namespace lockstep::kernels {
const QuantizedKernels* NeonI8mmQuantized() { return nullptr; }
}  // namespace lockstep::kernels
#endif
