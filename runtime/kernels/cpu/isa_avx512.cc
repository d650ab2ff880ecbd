// The CPU kernels for AVX512, compiled with its flags (cmake/kernels.cmake).
#include <cstdint>

namespace lockstep::kernels {
namespace {
constexpr int kTileRows = 4;
constexpr int kTileOutputs = 4;
constexpr int kQuantizedTileRows = 8;
constexpr int kSingleRowOutputs = 8;
}  // namespace
}  // namespace lockstep::kernels

#if defined(__AVX512F__)
#include "runtime/kernels/cpu/quantized_inl.h"
#include "runtime/kernels/cpu/table_inl.h"

namespace lockstep::kernels {

const KernelTable* Avx512Kernels() {
  static constexpr KernelTable table = MakeTable("avx512");
  const bool here = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return here ? &table : nullptr;
}

const QuantizedKernels* Avx512Quantized() {
  static constexpr QuantizedKernels kernels = MakeQuantized("avx512");
  return Avx512Kernels() != nullptr ? &kernels : nullptr;
}

}  // namespace lockstep::kernels
#else
#include "runtime/kernels/cpu/kernel_table.h"
#include "runtime/kernels/cpu/quantized.h"

namespace lockstep::kernels {
const KernelTable* Avx512Kernels() { return nullptr; }
const QuantizedKernels* Avx512Quantized() { return nullptr; }
}  // namespace lockstep::kernels
#endif
