// The CPU kernels for what every processor of the architecture has: SSE2 on x86, NEON with fused
// multiply-add on ARM.
#include <cstdint>

namespace lockstep::kernels {
namespace {
constexpr int kTileRows = 2;
constexpr int kTileOutputs = 2;
constexpr int kSingleRowOutputs = 4;
}  // namespace
}  // namespace lockstep::kernels

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

}  // namespace lockstep::kernels
