// Attention for what every processor of the architecture has.
#include "runtime/kernels/cpu/attention_inl.h"

namespace lockstep::kernels {

const AttentionKernels& BaselineAttention() {
  static constexpr AttentionKernels kernels = MakeAttention();
  return kernels;
}

}  // namespace lockstep::kernels
