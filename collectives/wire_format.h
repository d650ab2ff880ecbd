// How a rank's values travel when they are added up. Every rank rounds its own contribution once,
// to bytes that all ranks read alike (its own too), so that a sum is still the float32 left fold in
// rank order, with the same bits everywhere. docs/wire.md has the layouts, docs/numerics.md what
// they do to logits.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

#include "runtime/base/status.h"

namespace lockstep {

enum class WireFormat {
  kF32,   // as they are
  kBF16,  // 2 bytes each, rounded to nearest even
  kInt8,  // blocks of 32 with a scale: 36 bytes
};

// Values of a block. What is left behind the last whole block travels in float32.
inline constexpr size_t kWireBlock = 32;

// "f32", "bf16", "int8".
const char* NameOf(WireFormat format);
// Those, and "float32"; a usage error for any other name.
StatusOr<WireFormat> WireFormatOf(std::string_view name);

// Of `count` values; a multiple of kWireBlock gives where the next value begins.
size_t WireBytes(WireFormat format, size_t count);

// Rounds the float32 values that fill `values` where they stand; the result is its first WireBytes.
void Pack(WireFormat format, std::span<std::byte> values);

// values[i] = what Pack made of it; `packed` begins at a block and has WireBytes(values.size()).
void Unpack(WireFormat format, std::span<const std::byte> packed, std::span<float> values);

}  // namespace lockstep
