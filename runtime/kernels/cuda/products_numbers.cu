// Products with weights that are numbers, wide or narrow.
#include "runtime/kernels/cuda/products.cuh"

namespace lockstep::kernels::cuda {

FormatKernels NumberKernels(const WeightFormat& format) {
  switch (format.encoding) {
    case Encoding::kF32:
      return KernelsOf<Codec<Encoding::kF32>>();
    case Encoding::kF16:
      return KernelsOf<Codec<Encoding::kF16>>();
    case Encoding::kBF16:
      return KernelsOf<Codec<Encoding::kBF16>>();
    case Encoding::kFp8:
      return KernelsOf<Codec<Encoding::kFp8>>();
    case Encoding::kMxfp4:
      return KernelsOf<Codec<Encoding::kMxfp4>>();
    case Encoding::kNvfp4:
      return KernelsOf<Codec<Encoding::kNvfp4>>();
    default:
      return {};
  }
}

cudaError_t LaunchProducts(const Launch& launch, const WeightFormat& format,
                           const ProductArgs& args) {
  for (const auto kernels_of : {NumberKernels, GgufKernels, MlxKernels}) {
    const FormatKernels kernels = kernels_of(format);
    if (kernels.products != nullptr) return kernels.products(launch, args);
  }
  return cudaErrorNotSupported;
}

cudaError_t LaunchEmbed(const Launch& launch, const WeightFormat& format, const PackedRows& table,
                        int64_t first_row, const int32_t* tokens, int64_t rows, float* y) {
  if (rows == 0) return cudaSuccess;
  for (const auto kernels_of : {NumberKernels, GgufKernels, MlxKernels}) {
    const FormatKernels kernels = kernels_of(format);
    if (kernels.embed != nullptr) return kernels.embed(launch, table, first_row, tokens, rows, y);
  }
  return cudaErrorNotSupported;
}

}  // namespace lockstep::kernels::cuda
