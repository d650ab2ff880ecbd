// The table of one instruction set. An isa_*.cc sets the tile sizes, includes this, and hands out
// MakeTable().
#pragma once

#include "runtime/kernels/cpu/matmul_inl.h"
#include "runtime/kernels/cpu/moe_inl.h"
#include "runtime/kernels/cpu/norm_inl.h"

namespace lockstep::kernels {
namespace {

constexpr KernelTable MakeTable(const char* name) {
  return KernelTable{name,        MatMulImpl,   RmsNormImpl,   AddImpl,
                     SiluMulImpl, RouteRowImpl, CombineRowImpl};
}

}  // namespace
}  // namespace lockstep::kernels
