// The quantized products for AVX512 with VNNI, compiled with its flags (cmake/kernels.cmake). A
// translation unit of its own, with its own check: AVX512 processors before 2019 lack VNNI.
#if defined(__AVX512VNNI__)
namespace lockstep::kernels {
namespace {
constexpr int kQuantizedTileRows = 8;
}  // namespace
}  // namespace lockstep::kernels

#include "runtime/kernels/cpu/quantized_inl.h"

namespace lockstep::kernels {

const QuantizedKernels* Avx512VnniQuantized() {
  static constexpr QuantizedKernels kernels = MakeQuantized("avx512vnni");
  const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  return here ? &kernels : nullptr;
}

}  // namespace lockstep::kernels
#else
#include "runtime/kernels/cpu/quantized.h"

namespace lockstep::kernels {
const QuantizedKernels* Avx512VnniQuantized() { return nullptr; }
}  // namespace lockstep::kernels
#endif
