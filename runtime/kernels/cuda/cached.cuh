// Rows of the KV cache (runtime/kernels/cache_row.h): read a few numbers at a time, written by a
// warp. The numbers have the bits of DecodeCacheRow and EncodeCacheRow.
#pragma once

#include "runtime/kernels/cuda/attend.h"
#include "runtime/kernels/cuda/device.cuh"

namespace lockstep::kernels::cuda {

constexpr int kStoredBlock = 32;  // kCacheBlock

// The scale of value `i` in a kQ8 row of `dim` values.
__device__ inline float StoredScale(const std::byte* row, int i, int dim) {
  return reinterpret_cast<const float*>(row + (dim + 3) / 4 * 4)[i / kStoredBlock];
}

template <Stored kType>
__device__ inline float LoadStored(const std::byte* row, int i, int dim) {
  if constexpr (kType == Stored::kF32) return reinterpret_cast<const float*>(row)[i];
  if constexpr (kType == Stored::kBF16) return Bf16(reinterpret_cast<const uint16_t*>(row)[i]);
  if constexpr (kType == Stored::kF16) return Half(reinterpret_cast<const uint16_t*>(row)[i]);
  return static_cast<float>(static_cast<int8_t>(row[i])) * StoredScale(row, i, dim);
}

// Values i .. i + kCount - 1 (2 or 4) with one load, where i and dim are multiples of kCount and
// the row begins at one.
template <Stored kType, int kCount>
__device__ inline void LoadNeighbours(const std::byte* row, int i, int dim, float* to) {
  if constexpr (kType == Stored::kF32 && kCount == 4) {
    const float4 all = *reinterpret_cast<const float4*>(row + 4 * i);
    to[0] = all.x, to[1] = all.y, to[2] = all.z, to[3] = all.w;
  } else if constexpr (kType == Stored::kF32) {
    const float2 all = *reinterpret_cast<const float2*>(row + 4 * i);
    to[0] = all.x, to[1] = all.y;
  } else if constexpr (kType == Stored::kQ8) {
    uint32_t codes;
    if constexpr (kCount == 4) codes = *reinterpret_cast<const uint32_t*>(row + i);
    if constexpr (kCount == 2) codes = *reinterpret_cast<const uint16_t*>(row + i);
    const float scale = StoredScale(row, i, dim);
#pragma unroll
    for (int j = 0; j < kCount; ++j)
      to[j] = static_cast<float>(static_cast<int8_t>(codes >> (8 * j) & 0xffu)) * scale;
  } else {
    uint32_t words[kCount / 2];
    if constexpr (kCount == 4) {
      const uint2 both = *reinterpret_cast<const uint2*>(row + 2 * i);
      words[0] = both.x, words[1] = both.y;
    } else {
      words[0] = *reinterpret_cast<const uint32_t*>(row + 2 * i);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const uint32_t bits = words[j / 2] >> (j % 2 * 16) & 0xffffu;
      to[j] = kType == Stored::kBF16 ? Bf16(bits) : Half(bits);
    }
  }
}

// The same at any place; zeros beyond the row.
template <Stored kType, int kCount>
__device__ inline void LoadSome(const std::byte* row, int i, int dim, bool aligned, float* to) {
  if (aligned && i + kCount <= dim) return LoadNeighbours<kType, kCount>(row, i, dim, to);
#pragma unroll
  for (int j = 0; j < kCount; ++j) to[j] = i + j < dim ? LoadStored<kType>(row, i + j, dim) : 0.0f;
}

// Round to nearest even; NaN stays NaN.
__device__ inline uint16_t ToBf16(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}
// The same; beyond the largest half: that one.
__device__ inline uint16_t ToHalf(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477fe000u) return static_cast<uint16_t>(sign | 0x7bffu);  // 65504 and more
  if (magnitude < 0x38800000u) {  // subnormal: let the adder round at 2^-24
    const float shifted = __uint_as_float(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__float_as_uint(shifted) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u) - 0x38000000u;
  return static_cast<uint16_t>(sign | rounded >> 13);
}

// Values of one kQ8 block, one a lane; lanes beyond it come with zeros.
__device__ inline void StoreQ8Block(float value, int i, int dim, std::byte* row) {
  const bool finite = (__float_as_uint(value) & 0x7f800000u) != 0x7f800000u;
  const bool all_finite = __any_sync(kAllLanes, !finite) == 0;
  const float largest = WarpMax(finite ? fabsf(value) : 0.0f);
  float scale = largest / 127.0f;
  int code = 0;
  if (!all_finite) {
    scale = __uint_as_float(0x7fc00000u);
  } else if (largest < 1e-30f) {
    scale = 0;
  } else {
    code = static_cast<int>(rintf(value * (127.0f / largest)));
  }
  if (i < dim) row[i] = static_cast<std::byte>(code);
  if (Lane() == 0) reinterpret_cast<float*>(row + (dim + 3) / 4 * 4)[i / kStoredBlock] = scale;
}

// `dim` values that the warp's lanes see into a row of the cache.
__device__ inline void StoreRow(Stored type, const float* values, int dim, std::byte* row) {
  for (int begin = 0; begin < dim; begin += kWarp) {
    const int i = begin + Lane();
    const float value = i < dim ? values[i] : 0.0f;
    if (type == Stored::kQ8) {
      StoreQ8Block(value, i, dim, row);
    } else if (i < dim) {
      if (type == Stored::kF32) reinterpret_cast<float*>(row)[i] = value;
      if (type == Stored::kBF16) reinterpret_cast<uint16_t*>(row)[i] = ToBf16(value);
      if (type == Stored::kF16) reinterpret_cast<uint16_t*>(row)[i] = ToHalf(value);
    }
  }
}

}  // namespace lockstep::kernels::cuda
