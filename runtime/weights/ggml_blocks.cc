// Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
#include "runtime/weights/ggml_blocks.h"

#include <cstring>
#include <string>

#include "runtime/base/check.h"
#include "runtime/base/gguf.h"

namespace lockstep {
namespace {

constexpr int64_t kSuperWeights = 256;
constexpr int64_t kSuperBlocks = kSuperWeights / kBlockWeights;

constexpr Encoding kReadable[] = {
    Encoding::kF32,   Encoding::kF16,  Encoding::kBF16, Encoding::kQ4_0,  Encoding::kQ4_1,
    Encoding::kQ5_0,  Encoding::kQ5_1, Encoding::kQ8_0, Encoding::kQ2_K,  Encoding::kQ3_K,
    Encoding::kQ4_K,  Encoding::kQ5_K, Encoding::kQ6_K, Encoding::kIq4Nl, Encoding::kIq4Xs,
    Encoding::kMxfp4, Encoding::kNvfp4};

uint8_t At(const std::byte* bytes, int64_t index) { return static_cast<uint8_t>(bytes[index]); }

// The planes of a portable row that the blocks are spread over, in order.
struct Planes {
  std::byte *outer, *inner, *codes;

  void Put(std::byte** plane, const std::byte* from, size_t bytes) {
    std::memcpy(*plane, from, bytes);
    *plane += bytes;
  }
  void PutByte(std::byte** plane, uint8_t value) { *(*plane)++ = std::byte{value}; }
};

// A block of scales and then codes that are the same in both layouts.
void SplitBlocks(const std::byte* blocks, int64_t count, size_t scale_bytes, size_t code_bytes,
                 Planes to) {
  for (int64_t i = 0; i < count; ++i, blocks += scale_bytes + code_bytes) {
    to.Put(&to.inner, blocks, scale_bytes);
    to.Put(&to.codes, blocks + scale_bytes, code_bytes);
  }
}

void PutNibbles(const uint8_t* values, Planes* to) {
  for (int j = 0; j < 16; ++j) {
    to->PutByte(&to->codes, static_cast<uint8_t>((values[j] & 15) | (values[j + 16] & 15) << 4));
  }
}

void PutTwoBits(const uint8_t* values, Planes* to) {
  for (int j = 0; j < 8; ++j) {
    to->PutByte(&to->codes, static_cast<uint8_t>((values[j] & 3) | (values[j + 8] & 3) << 2 |
                                                 (values[j + 16] & 3) << 4 | values[j + 24] << 6));
  }
}

// Bit `place` of every byte as a word.
void PutBits(const std::byte* bytes, int64_t place, Planes* to) {
  uint32_t word = 0;
  for (int j = 0; j < 32; ++j) word |= uint32_t{(At(bytes, j) >> place) & 1u} << j;
  std::memcpy(to->codes, &word, sizeof word);
  to->codes += sizeof word;
}

// Block `block` of a super-block has two bits a weight in 32 bytes of the half it belongs to.
void TwoBitsOf(const std::byte* quants, int64_t block, uint8_t* values) {
  const std::byte* half = quants + block / 4 * 32;
  for (int j = 0; j < 32; ++j) values[j] = (At(half, j) >> (2 * (block % 4))) & 3;
}

// scales[16], quants[64], d, dmin
void SpreadQ2_K(const std::byte* super, Planes* to) {
  to->Put(&to->outer, super + 80, 4);
  to->Put(&to->inner, super, 16);
  for (int64_t block = 0; block < kSuperBlocks; ++block) {
    uint8_t values[32];
    TwoBitsOf(super + 16, block, values);
    PutTwoBits(values, to);
  }
}

// high bits[32], quants[64], scales[12] of 6 bits, d
void SpreadQ3_K(const std::byte* super, Planes* to) {
  const std::byte* scales = super + 96;
  to->Put(&to->outer, super + 108, 2);
  for (int64_t i = 0; i < 16; ++i) {
    const int low = i < 8 ? At(scales, i) & 15 : At(scales, i - 8) >> 4;
    const int high = (At(scales, 8 + i % 4) >> (2 * (i / 4))) & 3;
    to->PutByte(&to->inner, static_cast<uint8_t>((low | high << 4) - 32));
  }
  for (int64_t block = 0; block < kSuperBlocks; ++block) {
    uint8_t values[32];
    TwoBitsOf(super + 32, block, values);
    PutTwoBits(values, to);
    PutBits(super, block, to);
  }
}

// Eight scales and eight minimums of 6 bits in 12 bytes.
void SpreadScalesAndMinimums(const std::byte* packed, Planes* to) {
  for (int64_t i = 0; i < 4; ++i) {
    to->PutByte(&to->inner, At(packed, i) & 63);
    to->PutByte(&to->inner, At(packed, i + 4) & 63);
  }
  for (int64_t i = 4; i < 8; ++i) {
    const uint8_t low = At(packed, i + 4);
    to->PutByte(&to->inner, static_cast<uint8_t>((low & 15) | (At(packed, i - 4) >> 6) << 4));
    to->PutByte(&to->inner, static_cast<uint8_t>(low >> 4 | (At(packed, i) >> 6) << 4));
  }
}

// Blocks 2n and 2n + 1 are the low and the high halves of 32 bytes.
void FourBitsOf(const std::byte* quants, int64_t block, uint8_t* values) {
  const std::byte* pair = quants + block / 2 * 32;
  for (int j = 0; j < 32; ++j) values[j] = (At(pair, j) >> (4 * (block % 2))) & 15;
}

// d, dmin, scales[12], quants[128]
void SpreadQ4_K(const std::byte* super, Planes* to) {
  to->Put(&to->outer, super, 4);
  SpreadScalesAndMinimums(super + 4, to);
  for (int64_t block = 0; block < kSuperBlocks; ++block) {
    uint8_t values[32];
    FourBitsOf(super + 16, block, values);
    PutNibbles(values, to);
  }
}

// d, dmin, scales[12], high bits[32], quants[128]
void SpreadQ5_K(const std::byte* super, Planes* to) {
  to->Put(&to->outer, super, 4);
  SpreadScalesAndMinimums(super + 4, to);
  for (int64_t block = 0; block < kSuperBlocks; ++block) {
    uint8_t values[32];
    FourBitsOf(super + 48, block, values);
    PutBits(super + 16, block, to);
    PutNibbles(values, to);
  }
}

// low four bits[128], high two bits[64], scales[16], d
void SpreadQ6_K(const std::byte* super, Planes* to) {
  to->Put(&to->outer, super + 208, 2);
  to->Put(&to->inner, super + 192, 16);
  for (int64_t block = 0; block < kSuperBlocks; ++block) {
    // Of the four blocks of a half, the low halves of 64 bytes are the first two.
    const std::byte* low = super + block / 4 * 64 + block % 2 * 32;
    const int64_t shift = block % 4 / 2 * 4;
    uint8_t values[32];
    for (int j = 0; j < 32; ++j) values[j] = (At(low, j) >> shift) & 15;
    PutNibbles(values, to);
    TwoBitsOf(super + 128, block, values);
    PutTwoBits(values, to);
  }
}

// d, high two bits of the scales u16, their low four bits[4], quants[128]
void SpreadIq4Xs(const std::byte* super, Planes* to) {
  to->Put(&to->outer, super, 2);
  for (int64_t block = 0; block < kSuperBlocks; ++block) {
    const int low = (At(super, 4 + block / 2) >> (4 * (block % 2))) & 15;
    const int high = (At(super, 2 + block / 4) >> (2 * (block % 4))) & 3;
    to->PutByte(&to->inner, static_cast<uint8_t>((low | high << 4) - 32));
  }
  to->Put(&to->codes, super + 8, 128);
}

// Blocks of 64: four scales, then 16 weights each as nibbles. The row's own scale is 1 there.
void SpreadNvfp4(const std::byte* blocks, int64_t count, Planes to) {
  const float one = 1;
  if (count > 0) std::memcpy(to.outer, &one, sizeof one);
  for (int64_t i = 0; i < 2 * count; ++i) {
    const std::byte* block = blocks + i / 2 * 36;
    for (int64_t half = 0; half < 2; ++half) {
      // ggml's scales have no sign, and what would be NaN is zero.
      const uint8_t scale = At(block, i % 2 * 2 + half) & 0x7f;
      to.PutByte(&to.inner, scale == 0x7f ? 0 : scale);
    }
    uint8_t values[32];
    for (int j = 0; j < 32; ++j) {
      const uint8_t both = At(block, 4 + i % 2 * 16 + j / 16 * 8 + j % 8);
      values[j] = j % 16 < 8 ? both & 15 : both >> 4;
    }
    PutNibbles(values, &to);
  }
}

// Bytes of a block of GgmlBlockWeights. Super-blocks pack their scales closer than portable rows.
uint64_t GgmlBlockBytes(const WeightFormat& format) {
  switch (format.encoding) {
    case Encoding::kQ3_K:
      return 110;
    case Encoding::kQ4_K:
      return 144;
    case Encoding::kQ5_K:
      return 176;
    case Encoding::kIq4Xs:
      return 136;
    case Encoding::kNvfp4:
      return 36;
    default:
      return LayoutOf(format, GgmlBlockWeights(format), 0).row_bytes;
  }
}

using SpreadSuper = void (*)(const std::byte*, Planes*);

SpreadSuper SpreadOf(Encoding encoding) {
  switch (encoding) {
    case Encoding::kQ2_K:
      return SpreadQ2_K;
    case Encoding::kQ3_K:
      return SpreadQ3_K;
    case Encoding::kQ4_K:
      return SpreadQ4_K;
    case Encoding::kQ5_K:
      return SpreadQ5_K;
    case Encoding::kQ6_K:
      return SpreadQ6_K;
    case Encoding::kIq4Xs:
      return SpreadIq4Xs;
    default:
      return nullptr;
  }
}

}  // namespace

StatusOr<WeightFormat> FormatOfGgml(std::string_view name) {
  std::string readable;
  for (const Encoding encoding : kReadable) {
    const WeightFormat format = WeightFormat::Of(encoding);
    if (format.Name() == name) return format;
    readable += (readable.empty() ? "" : ", ") + format.Name();
  }
  return ModelError("ggml type %s is not read by this build; it reads %s", std::string(name),
                    readable);
}

StatusOr<WeightFormat> FormatOfGgml(uint32_t type) { return FormatOfGgml(GgufTypeName(type)); }

int64_t GgmlBlockWeights(const WeightFormat& format) {
  if (format.plain()) return 1;
  switch (format.encoding) {
    case Encoding::kFp8:
    case Encoding::kMlx:
      return 0;
    case Encoding::kNvfp4:
      return 64;
    default:
      return format.group_blocks == 0 ? kBlockWeights : kSuperWeights;
  }
}

StatusOr<uint64_t> GgmlRowBytes(const WeightFormat& format, int64_t inputs) {
  const int64_t block = GgmlBlockWeights(format);
  if (block == 0 || inputs < 0 || inputs >= int64_t{1} << 48 || inputs % block != 0) {
    return ModelError("rows of %d weights cannot be %s: its blocks are of %d weights", inputs,
                      format.Name(), block);
  }
  return static_cast<uint64_t>(inputs / block) * GgmlBlockBytes(format);
}

void GgmlToPortable(const WeightFormat& format, const std::byte* blocks, int64_t inputs,
                    std::byte* portable) {
  const int64_t block = GgmlBlockWeights(format);
  LOCKSTEP_CHECK(block > 0 && inputs % block == 0);
  const RowLayout layout = LayoutOf(format, inputs, 0);
  Planes to{portable, portable + layout.inner_at, portable + layout.codes_at};
  const int64_t count = inputs / block;
  if (format.plain()) {
    if (layout.row_bytes > 0) std::memcpy(portable, blocks, layout.row_bytes);
  } else if (format.encoding == Encoding::kNvfp4) {
    SpreadNvfp4(blocks, count, to);
  } else if (const SpreadSuper spread = SpreadOf(format.encoding)) {
    const uint64_t bytes = GgmlBlockBytes(format);
    for (int64_t i = 0; i < count; ++i) spread(blocks + static_cast<uint64_t>(i) * bytes, &to);
  } else {
    SplitBlocks(blocks, count, layout.inner_bytes, layout.code_bytes, to);
  }
}

}  // namespace lockstep
