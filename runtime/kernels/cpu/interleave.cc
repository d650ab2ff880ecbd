#include "runtime/kernels/cpu/interleave.h"

#include <cstring>

namespace lockstep::kernels {
namespace {

constexpr int kMostWords = 8;

// Bytes of one number in the outer and inner entries.
struct Units {
  uint64_t outer, inner;
};

Units UnitsOf(const WeightFormat& format) {
  switch (format.encoding) {
    case Encoding::kNvfp4:
      return {4, 1};
    case Encoding::kMlx:
      return {SizeOf(format.scale_type), 1};
    case Encoding::kQ2_K:
    case Encoding::kQ3_K:
    case Encoding::kQ4_K:
    case Encoding::kQ5_K:
    case Encoding::kQ6_K:
    case Encoding::kIq4Xs:
    case Encoding::kMxfp4:
      return {2, 1};
    case Encoding::kQ4_0:
    case Encoding::kQ4_1:
    case Encoding::kQ5_0:
    case Encoding::kQ5_1:
    case Encoding::kQ8_0:
    case Encoding::kIq4Nl:
      return {2, 2};
    case Encoding::kF32:
    case Encoding::kF16:
    case Encoding::kBF16:
    case Encoding::kFp8:
      break;  // have no panels
  }
  return {};
}

// Bit 8 b + i of the result is bit 4 i + b of `plane`.
uint32_t SortBits(uint32_t plane) {
  uint32_t sorted = 0;
  for (int b = 0; b < 4; ++b) {
    uint32_t bits = (plane >> b) & 0x11111111u;
    bits = (bits | bits >> 3) & 0x03030303u;
    bits = (bits | bits >> 6) & 0x000f000fu;
    bits = (bits | bits >> 12) & 0xffu;
    sorted |= bits << (8 * b);
  }
  return sorted;
}

uint32_t UnsortBits(uint32_t sorted) {
  uint32_t plane = 0;
  for (int b = 0; b < 4; ++b) {
    uint32_t bits = (sorted >> (8 * b)) & 0xffu;
    bits = (bits | bits << 12) & 0x000f000fu;
    bits = (bits | bits << 6) & 0x03030303u;
    bits = (bits | bits << 3) & 0x11111111u;
    plane |= bits << b;
  }
  return plane;
}

// The word that holds a plane of single bits, or -1.
int BitPlane(const WeightFormat& format) {
  switch (format.encoding) {
    case Encoding::kQ5_0:
    case Encoding::kQ5_1:
    case Encoding::kQ5_K:
      return 0;
    case Encoding::kQ3_K:
      return 2;
    default:
      return -1;
  }
}

// Sixteen bytes of 4-bit codes in ascending order, the common case of MLX, as nibbles: code j
// beside code j + 16.
void FourBitWords(const std::byte* codes, uint32_t* words) {
  uint64_t ascending[2], nibbles[2];
  std::memcpy(ascending, codes, sizeof ascending);
  // Four bytes hold eight codes: a byte each.
  const auto spread = [](uint64_t eight) {
    eight = (eight | eight << 16) & 0x0000ffff0000ffffu;
    eight = (eight | eight << 8) & 0x00ff00ff00ff00ffu;
    return (eight | eight << 4) & 0x0f0f0f0f0f0f0f0fu;
  };
  for (int half = 0; half < 2; ++half) {
    const int shift = 32 * half;
    nibbles[half] = spread((ascending[0] >> shift) & 0xffffffffu) |
                    spread((ascending[1] >> shift) & 0xffffffffu) << 4;
  }
  std::memcpy(words, nibbles, sizeof nibbles);
}

// One block of MLX codes, taken apart.
struct Values {
  uint8_t at[kBlockWeights] = {};
};

Values FromBitString(const std::byte* codes, int bits) {
  Values values;
  for (int j = 0; j < kBlockWeights; ++j) {
    const int first = j * bits;
    uint32_t two = static_cast<uint8_t>(codes[first / 8]);
    if (first % 8 + bits > 8) two |= uint32_t{static_cast<uint8_t>(codes[first / 8 + 1])} << 8;
    values.at[j] = static_cast<uint8_t>((two >> (first % 8)) & ((1u << bits) - 1));
  }
  return values;
}

void ToBitString(const Values& values, int bits, std::byte* codes) {
  std::memset(codes, 0, static_cast<size_t>(4 * bits));
  for (int j = 0; j < kBlockWeights; ++j) {
    const int first = j * bits;
    const uint32_t two = uint32_t{values.at[j]} << (first % 8);
    codes[first / 8] |= static_cast<std::byte>(two & 0xff);
    if (first % 8 + bits > 8) codes[first / 8 + 1] |= static_cast<std::byte>(two >> 8);
  }
}

// How a code of `bits` bits is stored: `low` bits at `low_shift` of byte `low_byte` and so on, for
// every weight. Calls place(byte of the words, shift there, shift in the code, bits).
template <typename Place>
void ForParts(int bits, int weight, const Place& place) {
  const int nibble_word = bits == 5 ? 4 : 0;  // byte where the nibbles begin
  const int bit_at = 8 * (weight % 4) + weight / 4;
  if (bits == 8) return place(weight, 0, 0, 8);
  if (bits >= 4) {
    place(nibble_word + weight % 16, weight / 16 * 4, 0, 4);
    if (bits == 5) place(bit_at / 8, bit_at % 8, 4, 1);
    if (bits == 6) place(16 + weight % 8, weight / 8 * 2, 4, 2);
    return;
  }
  place(weight % 8, weight / 8 * 2, 0, 2);
  if (bits == 3) place(8 + bit_at / 8, bit_at % 8, 2, 1);
}

// The words of one block of one output, from and to the portable codes.
void ToWords(const WeightFormat& format, const std::byte* codes, uint64_t bytes, uint32_t* words) {
  if (format.encoding != Encoding::kMlx) {
    std::memcpy(words, codes, bytes);
    if (const int plane = BitPlane(format); plane >= 0) words[plane] = SortBits(words[plane]);
    return;
  }
  if (format.bits == 4) return FourBitWords(codes, words);
  if (format.bits == 8) {
    std::memcpy(words, codes, bytes);
    for (int i = 0; i < kMostWords; ++i) words[i] ^= 0x80808080u;
    return;
  }
  const Values values = FromBitString(codes, format.bits);
  uint8_t to[4 * kMostWords] = {};
  for (int j = 0; j < kBlockWeights; ++j) {
    ForParts(format.bits, j, [&](int byte, int shift, int from, int bits) {
      to[byte] |= static_cast<uint8_t>(((values.at[j] >> from) & ((1 << bits) - 1)) << shift);
    });
  }
  std::memcpy(words, to, bytes);
}

void FromWords(const WeightFormat& format, const uint32_t* words, uint64_t bytes,
               std::byte* codes) {
  if (format.encoding != Encoding::kMlx) {
    uint32_t copy[kMostWords];
    std::memcpy(copy, words, bytes);
    if (const int plane = BitPlane(format); plane >= 0) copy[plane] = UnsortBits(copy[plane]);
    std::memcpy(codes, copy, bytes);
    return;
  }
  uint8_t from_words[4 * kMostWords];
  std::memcpy(from_words, words, bytes);
  Values values;
  for (int j = 0; j < kBlockWeights; ++j) {
    ForParts(format.bits, j, [&](int byte, int shift, int from, int bits) {
      values.at[j] |=
          static_cast<uint8_t>(((from_words[byte] >> shift) & ((1 << bits) - 1)) << from);
    });
    if (format.bits == 8) values.at[j] ^= 0x80;
  }
  ToBitString(values, format.bits, codes);
}

// Numbers of kUnit bytes: entry after entry, in each number after number, in each lane by lane.
template <uint64_t kUnit>
void InterleaveNumbers(const std::byte* from, uint64_t row_bytes, uint64_t entry_bytes,
                       std::byte* to) {
  for (uint64_t at = 0; at < entry_bytes; at += kUnit) {
    for (int64_t lane = 0; lane < kPanelOutputs; ++lane, to += kUnit) {
      std::memcpy(to, from + static_cast<uint64_t>(lane) * row_bytes + at, kUnit);
    }
  }
}

void InterleaveEntry(const std::byte* from, uint64_t row_bytes, uint64_t entry_bytes, uint64_t unit,
                     std::byte* to) {
  if (unit == 1) return InterleaveNumbers<1>(from, row_bytes, entry_bytes, to);
  if (unit == 2) return InterleaveNumbers<2>(from, row_bytes, entry_bytes, to);
  InterleaveNumbers<4>(from, row_bytes, entry_bytes, to);
}

// The codes of one block of sixteen rows. How many words they are, and whether they stay as they
// are, is known when this is compiled: loading waits for it.
template <uint64_t kWords, bool kAsTheyAre>
void InterleaveCodes(const WeightFormat& format, const std::byte* codes, uint64_t row_bytes,
                     std::byte* panel) {
  for (uint64_t lane = 0; lane < kPanelOutputs; ++lane, codes += row_bytes) {
    uint32_t words[kWords];
    if constexpr (kAsTheyAre) {
      std::memcpy(words, codes, sizeof words);
    } else {
      ToWords(format, codes, sizeof words, words);
    }
    for (uint64_t word = 0; word < kWords; ++word)
      std::memcpy(panel + (word * kPanelOutputs + lane) * 4, words + word, 4);
  }
}

template <bool kAsTheyAre>
void InterleaveBlock(const WeightFormat& format, const std::byte* codes, const RowLayout& layout,
                     std::byte* panel) {
  const auto of = [&]<uint64_t kWords>() {
    InterleaveCodes<kWords, kAsTheyAre>(format, codes, layout.row_bytes, panel);
  };
  switch (layout.code_bytes / 4) {
    case 2:
      return of.template operator()<2>();
    case 3:
      return of.template operator()<3>();
    case 4:
      return of.template operator()<4>();
    case 5:
      return of.template operator()<5>();
    case 6:
      return of.template operator()<6>();
    default:
      return of.template operator()<8>();
  }
}

void PickEntry(const std::byte* panel, int64_t lane, uint64_t entry_bytes, uint64_t unit,
               std::byte* to) {
  for (uint64_t at = 0; at < entry_bytes; at += unit) {
    std::memcpy(to + at, panel + at * kPanelOutputs + static_cast<uint64_t>(lane) * unit, unit);
  }
}

}  // namespace

bool HasPanels(const WeightFormat& format) {
  switch (format.encoding) {
    case Encoding::kF32:
    case Encoding::kF16:
    case Encoding::kBF16:
    case Encoding::kFp8:
      return false;
    case Encoding::kQ4_0:
    case Encoding::kQ4_1:
    case Encoding::kQ5_0:
    case Encoding::kQ5_1:
    case Encoding::kQ8_0:
    case Encoding::kQ2_K:
    case Encoding::kQ3_K:
    case Encoding::kQ4_K:
    case Encoding::kQ5_K:
    case Encoding::kQ6_K:
    case Encoding::kIq4Nl:
    case Encoding::kIq4Xs:
    case Encoding::kMxfp4:
    case Encoding::kNvfp4:
      return true;
    case Encoding::kMlx:
      // Groups of a power of two of blocks; codes whose words are listed in ForParts.
      return (format.group_blocks & (format.group_blocks - 1)) == 0 && format.bits >= 2 &&
             format.bits <= 8 && format.bits != 7;
  }
  return false;
}

void Interleave(const WeightFormat& format, int64_t inputs, int64_t phase, const std::byte* rows,
                std::byte* panel) {
  const RowLayout layout = LayoutOf(format, inputs, phase);
  const Units units = UnitsOf(format);
  for (uint64_t entry = 0; entry < layout.outer_entries; ++entry) {
    InterleaveEntry(rows + entry * layout.outer_bytes, layout.row_bytes, layout.outer_bytes,
                    units.outer, panel);
    panel += layout.outer_bytes * kPanelOutputs;
  }
  const bool as_they_are = format.encoding != Encoding::kMlx && BitPlane(format) < 0;
  const auto blocks = static_cast<uint64_t>(inputs / kBlockWeights);
  for (uint64_t block = 0; block < blocks; ++block) {
    InterleaveEntry(rows + layout.inner_at + block * layout.inner_bytes, layout.row_bytes,
                    layout.inner_bytes, units.inner, panel);
    panel += layout.inner_bytes * kPanelOutputs;
    const std::byte* codes = rows + layout.codes_at + block * layout.code_bytes;
    if (as_they_are) {
      InterleaveBlock<true>(format, codes, layout, panel);
    } else {
      InterleaveBlock<false>(format, codes, layout, panel);
    }
    panel += layout.code_bytes * kPanelOutputs;
  }
}

void DecodePanelRow(const WeightFormat& format, int64_t inputs, int64_t phase,
                    const std::byte* panel, int64_t lane, float* out) {
  const RowLayout layout = LayoutOf(format, inputs, phase);
  const Units units = UnitsOf(format);
  const std::byte* at = panel + layout.outer_entries * layout.outer_bytes * kPanelOutputs;
  for (int64_t block = 0; block < inputs / kBlockWeights; ++block) {
    // A portable row of one block.
    std::byte row[64] = {};
    const int64_t group = format.group_blocks > 0 ? (phase + block) / format.group_blocks : 0;
    PickEntry(panel + static_cast<uint64_t>(group) * layout.outer_bytes * kPanelOutputs, lane,
              layout.outer_bytes, units.outer, row);
    PickEntry(at, lane, layout.inner_bytes, units.inner, row + layout.outer_bytes);
    at += layout.inner_bytes * kPanelOutputs;
    uint32_t words[kMostWords] = {};
    PickEntry(at, lane, layout.code_bytes, 4, reinterpret_cast<std::byte*>(words));
    FromWords(format, words, layout.code_bytes, row + layout.outer_bytes + layout.inner_bytes);
    at += layout.code_bytes * kPanelOutputs;
    DecodeRow(format, row, kBlockWeights, 0, 0, kBlockWeights, out + block * kBlockWeights);
  }
}

}  // namespace lockstep::kernels
