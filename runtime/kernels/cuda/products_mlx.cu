// Products with weights of MLX's formats.
#include "runtime/kernels/cuda/products.cuh"

namespace lockstep::kernels::cuda {

FormatKernels MlxKernels(const WeightFormat& format) {
  if (format.encoding != Encoding::kMlx) return {};
  switch (format.bits) {
    case 2:
      return KernelsOf<Codec<Encoding::kMlx, 2>>();
    case 3:
      return KernelsOf<Codec<Encoding::kMlx, 3>>();
    case 4:
      return KernelsOf<Codec<Encoding::kMlx, 4>>();
    case 5:
      return KernelsOf<Codec<Encoding::kMlx, 5>>();
    case 6:
      return KernelsOf<Codec<Encoding::kMlx, 6>>();
    case 8:
      return KernelsOf<Codec<Encoding::kMlx, 8>>();
    default:
      return {};
  }
}

}  // namespace lockstep::kernels::cuda
