// What kernels share: warps, sums in their specified order, exponentials, narrow numbers. nvcc
// compiles this for devices; the tests compile it with g++ and a <cuda_runtime.h> of their own.
//
// Products are fused where `fmaf` says so and nowhere else: nvcc gets -fmad=false.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace lockstep::kernels::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The one name for the shared memory of every kernel: each divides it for itself.
extern __shared__ float4 shared_memory[];

__device__ inline int Lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ inline int WarpIndex() { return static_cast<int>(threadIdx.x) / kWarp; }

// Lane i and its neighbours by halves: 16 apart, then 8, 4, 2, 1. All lanes get the same bits,
// since x + y has those of y + x.
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int apart = kWarp / 2; apart > 0; apart /= 2)
    value += __shfl_xor_sync(kAllLanes, value, apart);
  return value;
}
__device__ inline float WarpMax(float value) {
#pragma unroll
  for (int apart = kWarp / 2; apart > 0; apart /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value, apart);
    value = other > value ? other : value;
  }
  return value;
}
// Of a block whose warps all come here: each warp's sum, warps ascending. Uses the shared memory.
__device__ inline float BlockSum(float value) {
  float* sums = reinterpret_cast<float*>(shared_memory);
  value = WarpSum(value);
  if (Lane() == 0) sums[WarpIndex()] = value;
  __syncthreads();
  float sum = sums[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x) / kWarp; ++warp) sum += sums[warp];
  return sum;
}

// e^x as runtime/kernels/cpu/lanes.h has it, to the last bit.
__device__ inline float Exp(float x) {
  if (x < -87.0f) return 0;
  const float clamped = x > 88.0f ? 88.0f : x;
  const float shifted = fmaf(clamped, 1.44269504088896341f, 12582912.0f);  // rounds to nearest
  const float n = shifted - 12582912.0f;
  const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, clamped));
  float p = fmaf(r, 1.9875691500e-4f, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(p, r * r, r) + 1.0f;
  return __uint_as_float(__float_as_uint(p) + (__float_as_uint(shifted) << 23));
}
__device__ inline float Sigmoid(float x) { return 1.0f / (1.0f + Exp(-x)); }

__device__ inline float Bf16(uint32_t bits) { return __uint_as_float(bits << 16); }
// IEEE half, exact (runtime/base/dtype.h).
__device__ inline float Half(uint32_t half) {
  const uint32_t sign = (half & 0x8000u) << 16;
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  if ((half & 0x7c00u) == 0x7c00u) return __uint_as_float(sign | magnitude | 0x7f800000u);
  return __uint_as_float(__float_as_uint(__uint_as_float(magnitude) * 0x1p112f) | sign);
}
// e4m3 that is no NaN: loaders let none in.
__device__ inline float Fp8(uint32_t code) {
  const float magnitude = __uint_as_float((code & 0x7fu) << 20) * 0x1p120f;
  return __uint_as_float(__float_as_uint(magnitude) | (code & 0x80u) << 24);
}

}  // namespace lockstep::kernels::cuda
