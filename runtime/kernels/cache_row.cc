#include "runtime/kernels/cache_row.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "runtime/base/dtype.h"

namespace lockstep::kernels {
namespace {

constexpr CacheType kTypes[] = {CacheType::kF32, CacheType::kBF16, CacheType::kF16, CacheType::kQ8};
constexpr float kLargestHalf = 65504;

uint16_t StoredHalf(float value) {
  if (value > kLargestHalf) value = kLargestHalf;
  if (value < -kLargestHalf) value = -kLargestHalf;
  return FloatToHalf(value);
}

// One block of at most kCacheBlock values; returns its scale.
float EncodeBlock(std::span<const float> values, int8_t* codes) {
  constexpr float kSmallest = 1e-30f;
  float largest = 0;
  bool finite = true;
  for (const float value : values) {
    largest = std::max(largest, std::fabs(value));
    finite = finite && std::isfinite(value);
  }
  if (!finite || largest < kSmallest) {
    std::fill_n(codes, values.size(), int8_t{0});
    return finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  }
  const float inverse = 127.0f / largest;
  for (size_t i = 0; i < values.size(); ++i)
    codes[i] = static_cast<int8_t>(std::nearbyint(values[i] * inverse));
  return largest / 127.0f;
}

void EncodeQ8(std::span<const float> values, std::byte* to) {
  auto* codes = reinterpret_cast<int8_t*>(to);
  std::byte* scales = to + CacheScalesAt(static_cast<int64_t>(values.size()));
  for (size_t begin = 0; begin < values.size(); begin += kCacheBlock) {
    const size_t count = std::min<size_t>(kCacheBlock, values.size() - begin);
    const float scale = EncodeBlock(values.subspan(begin, count), codes + begin);
    std::memcpy(scales + begin / kCacheBlock * sizeof(float), &scale, sizeof(float));
  }
}

void DecodeQ8(const std::byte* row, std::span<float> values) {
  const std::byte* scales = row + CacheScalesAt(static_cast<int64_t>(values.size()));
  for (size_t i = 0; i < values.size(); ++i) {
    float scale;
    std::memcpy(&scale, scales + i / kCacheBlock * sizeof(float), sizeof(float));
    values[i] = static_cast<float>(static_cast<int8_t>(row[i])) * scale;
  }
}

}  // namespace

std::string_view NameOf(CacheType type) {
  switch (type) {
    case CacheType::kF32:
      return "f32";
    case CacheType::kBF16:
      return "bf16";
    case CacheType::kF16:
      return "f16";
    case CacheType::kQ8:
      break;
  }
  return "q8";
}

StatusOr<CacheType> CacheTypeOf(std::string_view name) {
  std::string known;
  for (const CacheType type : kTypes) {
    if (name == NameOf(type)) return type;
    known += (known.empty() ? "" : ", ") + std::string(NameOf(type));
  }
  return UsageError("--kv-cache-dtype: '%s' is not one of %s", std::string(name), known);
}

void EncodeCacheRow(CacheType type, std::span<const float> values, std::byte* to) {
  if (type == CacheType::kQ8) return EncodeQ8(values, to);
  if (type == CacheType::kF32) {
    if (!values.empty()) std::memcpy(to, values.data(), values.size_bytes());
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = type == CacheType::kBF16 ? FloatToBf16(values[i]) : StoredHalf(values[i]);
    std::memcpy(to + 2 * i, &bits, sizeof(bits));
  }
}

void DecodeCacheRow(CacheType type, const std::byte* row, std::span<float> values) {
  if (type == CacheType::kQ8) return DecodeQ8(row, values);
  if (type == CacheType::kF32) {
    if (!values.empty()) std::memcpy(values.data(), row, values.size_bytes());
    return;
  }
  for (size_t i = 0; i < values.size(); ++i) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * i, sizeof(bits));
    values[i] = type == CacheType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
  }
}

}  // namespace lockstep::kernels
