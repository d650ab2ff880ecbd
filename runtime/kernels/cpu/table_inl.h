// The table of one instruction set. An isa_*.cc sets the tile sizes, includes this, and hands out
// MakeTable().
#pragma once

#include "runtime/kernels/cpu/matmul_inl.h"
#include "runtime/kernels/cpu/moe_inl.h"
#include "runtime/kernels/cpu/norm_inl.h"

namespace lockstep::kernels {
namespace {

void RepeatFused(int64_t rounds) {
  RepeatProduct<NativeF32, NativeF32, NativeF32>(
      rounds, [](NativeF32 sum, NativeF32 w, NativeF32 x) { return FusedNative(w, x, sum); });
}

constexpr KernelTable MakeTable(const char* name) {
  return KernelTable{name,           MatMulImpl,
                     RmsNormImpl,    AddImpl,
                     SiluMulImpl,    RouteRowImpl,
                     CombineRowImpl, {kFusedInstruction, RepeatFused, kLoopSums * kWidth * 2}};
}

}  // namespace
}  // namespace lockstep::kernels
