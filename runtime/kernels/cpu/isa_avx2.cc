// The CPU kernels for AVX2, compiled with its flags (cmake/kernels.cmake).
#include <cstdint>

namespace lockstep::kernels {
namespace {
constexpr int kTileRows = 3;
constexpr int kTileOutputs = 2;
constexpr int kQuantizedTileRows = 4;
constexpr int kSingleRowOutputs = 4;
}  // namespace
}  // namespace lockstep::kernels

#if defined(__AVX2__)
#include "runtime/kernels/cpu/quantized_inl.h"
#include "runtime/kernels/cpu/table_inl.h"

namespace lockstep::kernels {

const KernelTable* Avx2Kernels() {
  static constexpr KernelTable table = MakeTable("avx2");
  // F16C, which the flags allow too, is older than AVX2; clang 14 cannot ask for it.
  const bool here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return here ? &table : nullptr;
}

const QuantizedKernels* Avx2Quantized() {
  static constexpr QuantizedKernels kernels = MakeQuantized("avx2");
  return Avx2Kernels() != nullptr ? &kernels : nullptr;
}

}  // namespace lockstep::kernels
#else
#include "runtime/kernels/cpu/kernel_table.h"
#include "runtime/kernels/cpu/quantized.h"

namespace lockstep::kernels {
const KernelTable* Avx2Kernels() { return nullptr; }
const QuantizedKernels* Avx2Quantized() { return nullptr; }
}  // namespace lockstep::kernels
#endif
