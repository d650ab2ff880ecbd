// Latent attention of the ref backend (ref_mla.cc).
#pragma once

#include "runtime/kernels/backend.h"

namespace lockstep::kernels {

void RefPrepareLatentAttention(const LatentAttentionArgs& args);
void RefLatentAttention(Queue& queue, const LatentAttentionArgs& args);

}  // namespace lockstep::kernels
