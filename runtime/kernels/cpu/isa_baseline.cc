// The CPU kernels for what every processor of the architecture has: SSE2 on x86, NEON with fused
// multiply-add on ARM.
#include <cstdint>

namespace lockstep::kernels {
namespace {
constexpr int kTileRows = 2;
constexpr int kTileOutputs = 2;
constexpr int kQuantizedTileRows = 4;
constexpr int kSingleRowOutputs = 4;
}  // namespace
}  // namespace lockstep::kernels

#include "runtime/kernels/cpu/quantized_inl.h"
#include "runtime/kernels/cpu/table_inl.h"

namespace lockstep::kernels {

const KernelTable* BaselineKernels() {
#if defined(__aarch64__)
  static constexpr KernelTable table = MakeTable("neon");
#else
  static constexpr KernelTable table = MakeTable("baseline");
#endif
  return &table;
}

const QuantizedKernels* BaselineQuantized() {
#if defined(__aarch64__)
  static constexpr QuantizedKernels kernels = MakeQuantized("neon");
#else
  static constexpr QuantizedKernels kernels = MakeQuantized("baseline");
#endif
  return &kernels;
}

}  // namespace lockstep::kernels
