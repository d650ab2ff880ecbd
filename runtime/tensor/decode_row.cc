// DecodeRow: one loop per encoding over whole blocks, written so that compilers vectorize them.
#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/tensor/weight_format.h"

namespace lockstep {
namespace {

constexpr int64_t kHalf = kBlockWeights / 2;

uint8_t Byte(const std::byte* at) { return static_cast<uint8_t>(*at); }

uint16_t Load16(const std::byte* at) {
  uint16_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

uint32_t Load32(const std::byte* at) {
  uint32_t value;
  std::memcpy(&value, at, sizeof value);
  return value;
}

float LoadHalf(const std::byte* at) { return HalfToFloat(Load16(at)); }

float LoadFloat(const std::byte* at, DType type) {
  switch (type) {
    case DType::kF32:
      return std::bit_cast<float>(Load32(at));
    case DType::kF16:
      return LoadHalf(at);
    case DType::kBF16:
      return Bf16ToFloat(Load16(at));
  }
  return 0;
}

// The planes of a row.
struct Row {
  const WeightFormat& format;
  RowLayout layout;
  const std::byte* bytes;
  int64_t phase;

  const std::byte* Outer(int64_t block) const {
    if (format.group_blocks == kWholeRow) return bytes;
    return bytes +
           static_cast<uint64_t>((phase + block) / format.group_blocks) * layout.outer_bytes;
  }
  const std::byte* Inner(int64_t block) const {
    return bytes + layout.inner_at + static_cast<uint64_t>(block) * layout.inner_bytes;
  }
  const std::byte* Codes(int64_t entry) const {
    return bytes + layout.codes_at + static_cast<uint64_t>(entry) * layout.code_bytes;
  }
};

// The integers of a block, one way to store them each.
struct BlockCodes {
  alignas(64) uint8_t values[kBlockWeights];
};

void Nibbles(const std::byte* codes, BlockCodes* to) {
  for (int64_t j = 0; j < kHalf; ++j) {
    const uint8_t both = Byte(codes + j);
    to->values[j] = both & 15;
    to->values[j + kHalf] = both >> 4;
  }
}

void TwoBitPlanes(const std::byte* codes, BlockCodes* to) {
  uint64_t planes;
  std::memcpy(&planes, codes, sizeof planes);
  for (int plane = 0; plane < 4; ++plane) {
    const uint64_t values = (planes >> (2 * plane)) & 0x0303030303030303u;
    std::memcpy(to->values + 8 * plane, &values, sizeof values);
  }
}

// Bit j of `word` is added to weight j as bit `place`.
void AddBitPlane(const std::byte* word, int place, BlockCodes* to) {
  for (int64_t i = 0; i < 4; ++i) {
    // Multiplying with one bit in each byte spreads the eight bits over eight bytes.
    const uint64_t bits = Byte(word + i);
    const uint64_t spread =
        (((bits * 0x0101010101010101u & 0x8040201008040201u) + 0x7f7f7f7f7f7f7f7fu) >> 7) &
        0x0101010101010101u;
    uint64_t values;
    std::memcpy(&values, to->values + 8 * i, 8);
    values |= spread << place;
    std::memcpy(to->values + 8 * i, &values, 8);
  }
}

// out[j] = scale * (codes[j] - offset) for one half of a block, or both.
template <int64_t kCount>
void Scale(const uint8_t* codes, float scale, int offset, float* out) {
  for (int64_t j = 0; j < kCount; ++j) {
    out[j] = scale * static_cast<float>(static_cast<int>(codes[j]) - offset);
  }
}

template <int64_t kCount>
void ScaleAdd(const uint8_t* codes, float scale, float addend, float* out) {
  for (int64_t j = 0; j < kCount; ++j) {
    out[j] = scale * static_cast<float>(static_cast<int>(codes[j])) + addend;
  }
}

// out[j] = scale * table[nibble]: sixteen products, then look-ups.
void ScaleTable(const int8_t* table, const std::byte* codes, float scale, float* low, float* high) {
  alignas(64) float products[16];
  for (int i = 0; i < 16; ++i) products[i] = scale * static_cast<float>(table[i]);
  for (int64_t j = 0; j < kHalf; ++j) {
    const uint8_t both = Byte(codes + j);
    low[j] = products[both & 15];
    high[j] = products[both >> 4];
  }
}

void DecodeQ4_0(const Row& row, int64_t block, float* out) {
  BlockCodes q;
  Nibbles(row.Codes(block), &q);
  Scale<32>(q.values, LoadHalf(row.Inner(block)), 8, out);
}

void DecodeQ4_1(const Row& row, int64_t block, float* out) {
  BlockCodes q;
  Nibbles(row.Codes(block), &q);
  const std::byte* inner = row.Inner(block);
  ScaleAdd<32>(q.values, LoadHalf(inner), LoadHalf(inner + 2), out);
}

void FiveBits(const std::byte* codes, BlockCodes* to) {
  Nibbles(codes + 4, to);
  AddBitPlane(codes, 4, to);
}

void DecodeQ5_0(const Row& row, int64_t block, float* out) {
  BlockCodes q;
  FiveBits(row.Codes(block), &q);
  Scale<32>(q.values, LoadHalf(row.Inner(block)), 16, out);
}

void DecodeQ5_1(const Row& row, int64_t block, float* out) {
  BlockCodes q;
  FiveBits(row.Codes(block), &q);
  const std::byte* inner = row.Inner(block);
  ScaleAdd<32>(q.values, LoadHalf(inner), LoadHalf(inner + 2), out);
}

void DecodeQ8_0(const Row& row, int64_t block, float* out) {
  const float scale = LoadHalf(row.Inner(block));
  const auto* codes = reinterpret_cast<const int8_t*>(row.Codes(block));
  for (int64_t j = 0; j < kBlockWeights; ++j) out[j] = scale * static_cast<float>(codes[j]);
}

void DecodeQ2_K(const Row& row, int64_t block, float* out) {
  BlockCodes q;
  TwoBitPlanes(row.Codes(block), &q);
  const std::byte* outer = row.Outer(block);
  const float d = LoadHalf(outer);
  const float dmin = LoadHalf(outer + 2);
  for (int64_t half = 0; half < 2; ++half) {
    const uint8_t scales = Byte(row.Inner(block) + half);
    const float scale = d * static_cast<float>(scales & 15);
    const float minimum = dmin * static_cast<float>(scales >> 4);
    ScaleAdd<16>(q.values + half * kHalf, scale, -minimum, out + half * kHalf);
  }
}

// The two signed scales of a block, each times d.
void ScaleHalves(const Row& row, int64_t block, const BlockCodes& q, int offset, float* out) {
  const float d = LoadHalf(row.Outer(block));
  for (int64_t half = 0; half < 2; ++half) {
    const auto scale = static_cast<int8_t>(Byte(row.Inner(block) + half));
    Scale<16>(q.values + half * kHalf, d * static_cast<float>(scale), offset, out + half * kHalf);
  }
}

void DecodeQ3_K(const Row& row, int64_t block, float* out) {
  BlockCodes q;
  TwoBitPlanes(row.Codes(block), &q);
  AddBitPlane(row.Codes(block) + 8, 2, &q);
  ScaleHalves(row, block, q, 4, out);
}

// The scale and the minimum of a block, one byte each.
void ScaleMinimum(const Row& row, int64_t block, const BlockCodes& q, float* out) {
  const std::byte* outer = row.Outer(block);
  const std::byte* inner = row.Inner(block);
  const float scale = LoadHalf(outer) * static_cast<float>(Byte(inner));
  const float minimum = LoadHalf(outer + 2) * static_cast<float>(Byte(inner + 1));
  ScaleAdd<32>(q.values, scale, -minimum, out);
}

void DecodeQ4_K(const Row& row, int64_t block, float* out) {
  BlockCodes q;
  Nibbles(row.Codes(block), &q);
  ScaleMinimum(row, block, q, out);
}

void DecodeQ5_K(const Row& row, int64_t block, float* out) {
  BlockCodes q;
  FiveBits(row.Codes(block), &q);
  ScaleMinimum(row, block, q, out);
}

void DecodeQ6_K(const Row& row, int64_t block, float* out) {
  BlockCodes q, upper;
  Nibbles(row.Codes(block), &q);
  TwoBitPlanes(row.Codes(block) + 16, &upper);
  for (int64_t j = 0; j < kBlockWeights; ++j) q.values[j] |= upper.values[j] << 4;
  ScaleHalves(row, block, q, 32, out);
}

void DecodeIq4Nl(const Row& row, int64_t block, float* out) {
  ScaleTable(kIq4Values, row.Codes(block), LoadHalf(row.Inner(block)), out, out + kHalf);
}

void DecodeIq4Xs(const Row& row, int64_t block, float* out) {
  const auto scale = static_cast<int8_t>(Byte(row.Inner(block)));
  const float product = LoadHalf(row.Outer(block)) * static_cast<float>(scale);
  ScaleTable(kIq4Values, row.Codes(block), product, out, out + kHalf);
}

void DecodeMxfp4(const Row& row, int64_t block, float* out) {
  ScaleTable(kE2m1Doubled, row.Codes(block), E8m0HalfToFloat(Byte(row.Inner(block))), out,
             out + kHalf);
}

float Nvfp4Scale(float whole, uint8_t code) {
  const float scale = Fp8E4m3ToFloat(code);
  return whole < 0 ? scale / -whole : whole * scale;
}

void DecodeNvfp4(const Row& row, int64_t block, float* out) {
  const float whole = LoadFloat(row.Outer(block), DType::kF32);
  const float low = Nvfp4Scale(whole, Byte(row.Inner(block)));
  const float high = Nvfp4Scale(whole, Byte(row.Inner(block) + 1));
  alignas(64) float low_products[16], high_products[16];
  for (int i = 0; i < 16; ++i) {
    low_products[i] = low * kE2m1[i];
    high_products[i] = high * kE2m1[i];
  }
  for (int64_t j = 0; j < kHalf; ++j) {
    const uint8_t both = Byte(row.Codes(block) + j);
    out[j] = low_products[both & 15];
    out[j + kHalf] = high_products[both >> 4];
  }
}

// The lowest `bits` bits of every `period`.
constexpr uint64_t Repeated(int bits, int period) {
  uint64_t mask = 0;
  for (int at = 0; at < 64; at += period) mask |= ((uint64_t{1} << bits) - 1) << at;
  return mask;
}

// Eight codes are kBits bytes. They are pulled apart in halves: four and four, two and two, one and
// one.
template <int kBits>
void BitString(const std::byte* codes, BlockCodes* to) {
  constexpr uint64_t kFour = Repeated(4 * kBits, 64);
  constexpr uint64_t kTwo = Repeated(2 * kBits, 32);
  constexpr uint64_t kOne = Repeated(kBits, 16);
  for (int64_t j = 0; j < kBlockWeights; j += 8, codes += kBits) {
    uint64_t string = 0;  // put together in a register: a short copy would go through memory
    for (int i = 0; i < kBits; ++i) string |= uint64_t{Byte(codes + i)} << (8 * i);
    string = (string & kFour) | (string >> (4 * kBits)) << 32;
    string = (string & kTwo) | ((string >> (2 * kBits)) & kTwo) << 16;
    string = (string & kOne) | ((string >> kBits) & kOne) << 8;
    std::memcpy(to->values + j, &string, sizeof string);
  }
}

template <int kBits>
void DecodeMlx(const Row& row, int64_t block, float* out) {
  const std::byte* outer = row.Outer(block);
  const DType type = row.format.scale_type;
  BlockCodes q;
  if constexpr (kBits == 8) {
    std::memcpy(q.values, row.Codes(block), sizeof q.values);
  } else {
    BitString<kBits>(row.Codes(block), &q);
  }
  ScaleAdd<32>(q.values, LoadFloat(outer, type), LoadFloat(outer + SizeOf(type), type), out);
}

// Whole blocks with `kDecode`, inlined into the loop; a block that begin or end cuts by way of a
// copy.
template <void (*kDecode)(const Row&, int64_t, float*)>
void DecodeBlocks(const Row& row, int64_t begin, int64_t count, float* out) {
  int64_t at = begin;
  const int64_t end = begin + count;
  while (at < end) {
    const int64_t block = at / kBlockWeights;
    const int64_t offset = at % kBlockWeights;
    const int64_t here = std::min(kBlockWeights - offset, end - at);
    if (here == kBlockWeights) {
      kDecode(row, block, out);
    } else {
      alignas(64) float whole[kBlockWeights];
      kDecode(row, block, whole);
      std::copy_n(whole + offset, here, out);
    }
    out += here;
    at += here;
  }
}

void DecodeFp8(const Row& row, int64_t begin, int64_t count, float* out) {
  static const auto values = [] {
    std::array<float, 256> table;
    for (int code = 0; code < 256; ++code) {
      table[static_cast<size_t>(code)] = Fp8E4m3ToFloat(static_cast<uint8_t>(code));
    }
    return table;
  }();
  const int64_t end = begin + count;
  const bool whole_row = row.format.group_blocks == kWholeRow;
  const int64_t group = whole_row ? end + 1 : row.format.group_blocks * kBlockWeights;
  const int64_t shift = whole_row ? 0 : row.phase * kBlockWeights;
  for (int64_t at = begin; at < end;) {
    const int64_t stop = std::min(end, ((at + shift) / group + 1) * group - shift);
    const float scale = LoadFloat(row.Outer(at / kBlockWeights), DType::kF32);
    const std::byte* codes = row.Codes(at);
    for (int64_t j = 0; j < stop - at; ++j) out[j] = scale * values[Byte(codes + j)];
    out += stop - at;
    at = stop;
  }
}

void DecodePlain(const Row& row, int64_t begin, int64_t count, float* out) {
  const std::byte* from = row.Codes(begin);
  switch (row.format.encoding) {
    case Encoding::kF32:
      if (count > 0) std::memcpy(out, from, static_cast<size_t>(count) * sizeof(float));
      return;
    case Encoding::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = LoadHalf(from + 2 * i);
      return;
    default:
      for (int64_t i = 0; i < count; ++i) out[i] = Bf16ToFloat(Load16(from + 2 * i));
      return;
  }
}

void DecodeMlxRow(const Row& row, int64_t begin, int64_t count, float* out) {
  switch (row.format.bits) {
    case 2:
      return DecodeBlocks<DecodeMlx<2>>(row, begin, count, out);
    case 3:
      return DecodeBlocks<DecodeMlx<3>>(row, begin, count, out);
    case 4:
      return DecodeBlocks<DecodeMlx<4>>(row, begin, count, out);
    case 5:
      return DecodeBlocks<DecodeMlx<5>>(row, begin, count, out);
    case 6:
      return DecodeBlocks<DecodeMlx<6>>(row, begin, count, out);
    case 8:
      return DecodeBlocks<DecodeMlx<8>>(row, begin, count, out);
    default:
      LOCKSTEP_CHECK(false);
  }
}

using Decoder = void (*)(const Row&, int64_t, int64_t, float*);

constexpr Decoder kDecoders[] = {
    DecodePlain,
    DecodePlain,
    DecodePlain,
    DecodeFp8,
    DecodeBlocks<DecodeQ4_0>,
    DecodeBlocks<DecodeQ4_1>,
    DecodeBlocks<DecodeQ5_0>,
    DecodeBlocks<DecodeQ5_1>,
    DecodeBlocks<DecodeQ8_0>,
    DecodeBlocks<DecodeQ2_K>,
    DecodeBlocks<DecodeQ3_K>,
    DecodeBlocks<DecodeQ4_K>,
    DecodeBlocks<DecodeQ5_K>,
    DecodeBlocks<DecodeQ6_K>,
    DecodeBlocks<DecodeIq4Nl>,
    DecodeBlocks<DecodeIq4Xs>,
    DecodeBlocks<DecodeMxfp4>,
    DecodeBlocks<DecodeNvfp4>,
    DecodeMlxRow,
};
static_assert(std::size(kDecoders) == static_cast<size_t>(Encoding::kMlx) + 1);

}  // namespace

void DecodeRow(const WeightFormat& format, const std::byte* row, int64_t inputs, int64_t phase,
               int64_t begin, int64_t count, float* out) {
  LOCKSTEP_CHECK(begin >= 0 && count >= 0 && begin <= inputs - count);
  const Row view{format, LayoutOf(format, inputs, phase), row, phase};
  kDecoders[static_cast<size_t>(format.encoding)](view, begin, count, out);
}

}  // namespace lockstep
