#include "collectives/wire_format.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>

#include "runtime/base/dtype.h"

namespace lockstep {
namespace {

// A codec turns blocks of kWireBlock values into kBytes and back, in plain operations that the
// compiler vectorizes and that have the same result everywhere.
struct BF16 {
  static constexpr size_t kBytes = kWireBlock * sizeof(uint16_t);

  static void Pack(const float* values, std::byte* packed) {
    uint16_t halves[kWireBlock];
    for (size_t i = 0; i < kWireBlock; ++i) halves[i] = FloatToBf16(values[i]);
    std::memcpy(packed, halves, kBytes);
  }
  static void Unpack(const std::byte* packed, float* values) {
    uint16_t halves[kWireBlock];
    std::memcpy(halves, packed, kBytes);
    for (size_t i = 0; i < kWireBlock; ++i) values[i] = Bf16ToFloat(halves[i]);
  }
};

// The scale (float32) and 32 signed bytes, value = scale * byte. A block that holds something else
// than finite numbers becomes NaN, one without a number of 2^-100 becomes zeros.
struct Int8 {
  static constexpr size_t kBytes = sizeof(float) + kWireBlock;

  static void Pack(const float* values, std::byte* packed) {
    constexpr uint32_t kInfinity = 0x7f800000;
    constexpr float kLeast = 0x1p-100f;
    // 1.5 * 2^23: added to a number below 2^22, it leaves the nearest integer in the low bits.
    constexpr float kToInteger = 0x1.8p23f;
    // Magnitudes are ordered as their bits are.
    uint32_t largest_bits = 0;
    for (size_t i = 0; i < kWireBlock; ++i) {
      largest_bits = std::max(largest_bits, std::bit_cast<uint32_t>(values[i]) & 0x7fffffff);
    }
    const auto largest = std::bit_cast<float>(largest_bits);
    float scale = largest / 127;
    float inverse = 127 / largest;
    if (largest_bits >= kInfinity) {
      scale = std::numeric_limits<float>::quiet_NaN();
      inverse = 0;
    } else if (largest < kLeast) {
      scale = inverse = 0;
    }
    int8_t bytes[kWireBlock];
    for (size_t i = 0; i < kWireBlock; ++i) {
      const float shifted = values[i] * inverse + kToInteger;
      bytes[i] = static_cast<int8_t>(std::bit_cast<uint32_t>(shifted));
    }
    std::memcpy(packed, &scale, sizeof(scale));
    std::memcpy(packed + sizeof(scale), bytes, sizeof(bytes));
  }
  static void Unpack(const std::byte* packed, float* values) {
    float scale = 0;
    int8_t bytes[kWireBlock];
    std::memcpy(&scale, packed, sizeof(scale));
    std::memcpy(bytes, packed + sizeof(scale), sizeof(bytes));
    for (size_t i = 0; i < kWireBlock; ++i) values[i] = scale * static_cast<float>(bytes[i]);
  }
};

template <typename Codec>
void PackBlocks(std::span<std::byte> values) {
  constexpr size_t kBlockBytes = kWireBlock * sizeof(float);
  const size_t blocks = values.size() / kBlockBytes;
  for (size_t block = 0; block < blocks; ++block) {
    // What is written ends before what is still to be read.
    float read[kWireBlock];
    std::memcpy(read, values.data() + block * kBlockBytes, kBlockBytes);
    Codec::Pack(read, values.data() + block * Codec::kBytes);
  }
  const std::span<const std::byte> rest = values.subspan(blocks * kBlockBytes);
  if (!rest.empty()) std::memmove(values.data() + blocks * Codec::kBytes, rest.data(), rest.size());
}

template <typename Codec>
void UnpackBlocks(std::span<const std::byte> packed, std::span<float> values) {
  const size_t blocks = values.size() / kWireBlock;
  for (size_t block = 0; block < blocks; ++block) {
    Codec::Unpack(packed.data() + block * Codec::kBytes, values.data() + block * kWireBlock);
  }
  const std::span<float> rest = values.subspan(blocks * kWireBlock);
  if (!rest.empty()) {
    std::memcpy(rest.data(), packed.data() + blocks * Codec::kBytes, rest.size_bytes());
  }
}

}  // namespace

const char* NameOf(WireFormat format) {
  switch (format) {
    case WireFormat::kF32:
      return "f32";
    case WireFormat::kBF16:
      return "bf16";
    case WireFormat::kInt8:
      return "int8";
  }
  return "?";
}

StatusOr<WireFormat> WireFormatOf(std::string_view name) {
  for (const WireFormat format : {WireFormat::kF32, WireFormat::kBF16, WireFormat::kInt8}) {
    if (name == NameOf(format)) return format;
  }
  if (name == "float32") return WireFormat::kF32;
  return UsageError("'%s' is no format of the wire; f32, bf16 and int8 are", std::string(name));
}

size_t WireBytes(WireFormat format, size_t count) {
  const size_t blocks = count / kWireBlock, rest_bytes = count % kWireBlock * sizeof(float);
  switch (format) {
    case WireFormat::kBF16:
      return blocks * BF16::kBytes + rest_bytes;
    case WireFormat::kInt8:
      return blocks * Int8::kBytes + rest_bytes;
    case WireFormat::kF32:
      break;
  }
  return count * sizeof(float);
}

void Pack(WireFormat format, std::span<std::byte> values) {
  switch (format) {
    case WireFormat::kBF16:
      return PackBlocks<BF16>(values);
    case WireFormat::kInt8:
      return PackBlocks<Int8>(values);
    case WireFormat::kF32:
      break;
  }
}

void Unpack(WireFormat format, std::span<const std::byte> packed, std::span<float> values) {
  switch (format) {
    case WireFormat::kBF16:
      return UnpackBlocks<BF16>(packed, values);
    case WireFormat::kInt8:
      return UnpackBlocks<Int8>(packed, values);
    case WireFormat::kF32:
      break;
  }
  if (!values.empty()) std::memcpy(values.data(), packed.data(), values.size_bytes());
}

}  // namespace lockstep
