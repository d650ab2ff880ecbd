// How keys, values and latents lie in the pages of the KV cache: rows of one position (and head),
// in one of a few number formats. Every backend that keeps its pages in host memory has this
// layout. What is stored is defined here once, so that all instruction sets store the same bits;
// kernels read rows as the float32 numbers that DecodeCacheRow gives, one register at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>

#include "runtime/base/status.h"

namespace lockstep::kernels {

enum class CacheType : uint8_t {
  kF32,
  kBF16,  // rounded to the nearest, ties to even
  kF16,   // the same; beyond 65504: 65504
  // Blocks of kCacheBlock values, the last one shorter: all codes of the row, int8, then from the
  // next multiple of four bytes on the float32 scales. value = code * scale, rounded once; scale =
  // largest magnitude / 127, code = round(value * (127 / largest)). A block below 1e-30 is zero;
  // one with a value that is not finite has a NaN for its scale.
  kQ8,
};

inline constexpr int64_t kCacheBlock = 32;

// "f32", "bf16", "f16", "q8".
std::string_view NameOf(CacheType type);
// The types' names, as --kv-cache-dtype takes them.
StatusOr<CacheType> CacheTypeOf(std::string_view name);

// Where the scales of a kQ8 row of `values` begin.
constexpr int64_t CacheScalesAt(int64_t values) { return (values + 3) / 4 * 4; }

// Bytes of a row of `values`, a multiple of two.
constexpr int64_t CacheRowBytes(CacheType type, int64_t values) {
  switch (type) {
    case CacheType::kF32:
      return 4 * values;
    case CacheType::kBF16:
    case CacheType::kF16:
      return 2 * values;
    case CacheType::kQ8:
      break;
  }
  return CacheScalesAt(values) + (values + kCacheBlock - 1) / kCacheBlock * 4;
}

void EncodeCacheRow(CacheType type, std::span<const float> values, std::byte* to);
void DecodeCacheRow(CacheType type, const std::byte* row, std::span<float> values);

}  // namespace lockstep::kernels
