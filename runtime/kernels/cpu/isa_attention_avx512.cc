// Attention for AVX512, compiled with its flags (cmake/kernels.cmake).
#if defined(__AVX512F__)
#include "runtime/kernels/cpu/attention_inl.h"

namespace lockstep::kernels {

const AttentionKernels& Avx512Attention() {
  static constexpr AttentionKernels kernels = MakeAttention();
  return kernels;
}

}  // namespace lockstep::kernels
#else
#include "runtime/base/check.h"
#include "runtime/kernels/cpu/attention_rows.h"

namespace lockstep::kernels {
const AttentionKernels& Avx512Attention() {
  LOCKSTEP_CHECK(false);
  return BaselineAttention();
}
}  // namespace lockstep::kernels
#endif
