// Puts a kernel on a stream.
#pragma once

#include "runtime/kernels/cuda/kernels.h"

namespace lockstep::kernels::cuda {

template <typename... Parameters, typename... Arguments>
cudaError_t Start(const Launch& launch, void (*kernel)(Parameters...), dim3 grid, unsigned threads,
                  size_t shared_bytes, const Arguments&... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads, 1, 1);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = launch.stream;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

inline dim3 Grid(int64_t x, int64_t y = 1, int64_t z = 1) {
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y), static_cast<unsigned>(z));
}

}  // namespace lockstep::kernels::cuda
