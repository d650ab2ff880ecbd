// The norm of a row or a head.
#pragma once

#include "runtime/kernels/cpu/lanes.h"

namespace lockstep::kernels {
namespace {

void RmsNormImpl(const float* x, const float* weight, float eps, int64_t dim, float* y) {
  F32x16 squares = Splat(0);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) squares = Fused(Load(x + i), Load(x + i), squares);
  const F32x16 rest = LoadPart(x + i, dim - i);
  squares = Fused(rest, rest, squares);
  const float scale = 1.0f / __builtin_sqrtf(SumLanes(squares) / static_cast<float>(dim) + eps);
  for (i = 0; i + kLanes <= dim; i += kLanes) Store(Load(x + i) * scale * Load(weight + i), y + i);
  const F32x16 last = LoadPart(x + i, dim - i) * scale * LoadPart(weight + i, dim - i);
  StorePart(last, y + i, dim - i);
}

}  // namespace
}  // namespace lockstep::kernels
