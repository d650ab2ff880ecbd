// The attention ops of the ref backend (ref_attention.cc).
#pragma once

#include <cstdint>

#include "runtime/kernels/backend.h"

namespace lockstep::kernels {

// y = weight * x / sqrt(mean(x^2) + eps); y may be x.
void RefNormRow(const float* x, const float* weight, double eps, int64_t dim, float* y);

void RefPrepareAttention(const AttentionArgs& args);
void RefAttention(Queue& queue, const AttentionArgs& args);
void RefPrepareLatentAttention(const LatentAttentionArgs& args);
void RefLatentAttention(Queue& queue, const LatentAttentionArgs& args);

}  // namespace lockstep::kernels
