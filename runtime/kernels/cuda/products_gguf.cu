// Products with weights of GGUF's formats.
#include "runtime/kernels/cuda/products.cuh"

namespace lockstep::kernels::cuda {

FormatKernels GgufKernels(const WeightFormat& format) {
  switch (format.encoding) {
    case Encoding::kQ4_0:
      return KernelsOf<Codec<Encoding::kQ4_0>>();
    case Encoding::kQ4_1:
      return KernelsOf<Codec<Encoding::kQ4_1>>();
    case Encoding::kQ5_0:
      return KernelsOf<Codec<Encoding::kQ5_0>>();
    case Encoding::kQ5_1:
      return KernelsOf<Codec<Encoding::kQ5_1>>();
    case Encoding::kQ8_0:
      return KernelsOf<Codec<Encoding::kQ8_0>>();
    case Encoding::kQ2_K:
      return KernelsOf<Codec<Encoding::kQ2_K>>();
    case Encoding::kQ3_K:
      return KernelsOf<Codec<Encoding::kQ3_K>>();
    case Encoding::kQ4_K:
      return KernelsOf<Codec<Encoding::kQ4_K>>();
    case Encoding::kQ5_K:
      return KernelsOf<Codec<Encoding::kQ5_K>>();
    case Encoding::kQ6_K:
      return KernelsOf<Codec<Encoding::kQ6_K>>();
    case Encoding::kIq4Nl:
      return KernelsOf<Codec<Encoding::kIq4Nl>>();
    case Encoding::kIq4Xs:
      return KernelsOf<Codec<Encoding::kIq4Xs>>();
    default:
      return {};
  }
}

}  // namespace lockstep::kernels::cuda
