// The CPU kernels for AVX2, compiled with its flags (cmake/kernels.cmake).
#include <cstdint>

namespace lockstep::kernels {
namespace {
constexpr int kTileRows = 2;
constexpr int kTileOutputs = 2;
constexpr int kSingleRowOutputs = 4;
}  // namespace
}  // namespace lockstep::kernels

#if defined(__AVX2__)
#include "runtime/kernels/cpu/table_inl.h"

namespace lockstep::kernels {

const KernelTable* Avx2Kernels() {
  static constexpr KernelTable table = MakeTable("avx2");
  const bool here = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return here ? &table : nullptr;
}

}  // namespace lockstep::kernels
#else
#include "runtime/kernels/cpu/kernel_table.h"

namespace lockstep::kernels {
const KernelTable* Avx2Kernels() { return nullptr; }
}  // namespace lockstep::kernels
#endif
