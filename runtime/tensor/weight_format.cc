#include "runtime/tensor/weight_format.h"

#include <cstring>

#include "absl/strings/str_format.h"
#include "runtime/base/check.h"

namespace lockstep {
namespace {

// What does not depend on a format's choices.
struct EncodingTraits {
  const char* name;
  uint8_t outer_bytes;    // of one entry
  uint8_t inner_bytes;    // of one block
  uint8_t code_bytes;     // of one block; plain and fp8: of one weight
  int16_t group_blocks;   // 0: no outer plane
  bool codes_are_single;  // code_bytes is of one weight
};

constexpr EncodingTraits kTraits[] = {
    {"F32", 0, 0, 4, 0, true},      {"F16", 0, 0, 2, 0, true},
    {"BF16", 0, 0, 2, 0, true},     {"FP8", 4, 0, 1, kWholeRow, true},
    {"Q4_0", 0, 2, 16, 0, false},   {"Q4_1", 0, 4, 16, 0, false},
    {"Q5_0", 0, 2, 20, 0, false},   {"Q5_1", 0, 4, 20, 0, false},
    {"Q8_0", 0, 2, 32, 0, false},   {"Q2_K", 4, 2, 8, 8, false},
    {"Q3_K", 2, 2, 12, 8, false},   {"Q4_K", 4, 2, 16, 8, false},
    {"Q5_K", 4, 2, 20, 8, false},   {"Q6_K", 2, 2, 24, 8, false},
    {"IQ4_NL", 0, 2, 16, 0, false}, {"IQ4_XS", 2, 1, 16, 8, false},
    {"MXFP4", 0, 1, 16, 0, false},  {"NVFP4", 4, 2, 16, kWholeRow, false},
    {"MLX", 0, 0, 0, 1, false},
};
static_assert(std::size(kTraits) == static_cast<size_t>(Encoding::kMlx) + 1);

const EncodingTraits& TraitsOf(Encoding encoding) { return kTraits[static_cast<size_t>(encoding)]; }

int64_t BlocksOf(int64_t weights) { return (weights + kBlockWeights - 1) / kBlockWeights; }

// Outer entries that blocks [begin, end) of a row with `phase` need, the first one first.
struct EntryRange {
  int64_t begin = 0, end = 0;
};
EntryRange EntriesOf(const WeightFormat& format, int64_t phase, int64_t begin, int64_t end) {
  if (format.group_blocks == 0 || begin == end) return {};
  if (format.group_blocks == kWholeRow) return {0, 1};
  const int64_t group = format.group_blocks;
  return {(phase + begin) / group, (phase + end + group - 1) / group};
}

uint64_t Unsigned(int64_t value) { return static_cast<uint64_t>(value); }

}  // namespace

WeightFormat WeightFormat::Of(Encoding encoding) {
  WeightFormat format;
  format.encoding = encoding;
  format.group_blocks = TraitsOf(encoding).group_blocks;
  return format;
}

WeightFormat WeightFormat::Fp8(int16_t group_blocks) {
  LOCKSTEP_CHECK(group_blocks == kWholeRow || group_blocks > 0);
  WeightFormat format;
  format.encoding = Encoding::kFp8;
  format.group_blocks = group_blocks;
  return format;
}

WeightFormat WeightFormat::Mlx(int bits, int group_weights, DType scale_type) {
  LOCKSTEP_CHECK(((bits >= 2 && bits <= 6) || bits == 8) && group_weights > 0);
  LOCKSTEP_CHECK(group_weights % kBlockWeights == 0);
  WeightFormat format;
  format.encoding = Encoding::kMlx;
  format.group_blocks = static_cast<int16_t>(group_weights / kBlockWeights);
  format.bits = static_cast<uint8_t>(bits);
  format.scale_type = scale_type;
  return format;
}

DType WeightFormat::plain_type() const {
  LOCKSTEP_CHECK(plain());
  return encoding == Encoding::kF32   ? DType::kF32
         : encoding == Encoding::kF16 ? DType::kF16
                                      : DType::kBF16;
}

int64_t WeightFormat::cut_weights() const {
  const bool anywhere = plain() || (encoding == Encoding::kFp8 && group_blocks == kWholeRow);
  return anywhere ? 1 : kBlockWeights;
}

std::string WeightFormat::Name() const {
  if (encoding == Encoding::kMlx) {
    return absl::StrFormat("MLX %d bits, group %d", bits, group_blocks * kBlockWeights);
  }
  if (encoding == Encoding::kFp8 && group_blocks != kWholeRow) {
    return absl::StrFormat("FP8, tiles of %d", group_blocks * kBlockWeights);
  }
  return TraitsOf(encoding).name;
}

RowLayout LayoutOf(const WeightFormat& format, int64_t inputs, int64_t phase) {
  const EncodingTraits& traits = TraitsOf(format.encoding);
  const bool mlx = format.encoding == Encoding::kMlx;
  const int64_t blocks = BlocksOf(inputs);
  const EntryRange entries = EntriesOf(format, phase, 0, blocks);
  RowLayout layout;
  layout.outer_entries = Unsigned(entries.end - entries.begin);
  layout.outer_bytes = mlx ? 2 * SizeOf(format.scale_type) : traits.outer_bytes;
  layout.inner_bytes = traits.inner_bytes;
  layout.code_bytes = mlx ? uint64_t{4} * format.bits : traits.code_bytes;
  layout.inner_at = layout.outer_entries * layout.outer_bytes;
  layout.codes_at = layout.inner_at + Unsigned(blocks) * layout.inner_bytes;
  const int64_t codes = traits.codes_are_single ? inputs : blocks;
  layout.row_bytes = layout.codes_at + Unsigned(codes) * layout.code_bytes;
  return layout;
}

int64_t PhaseAt(const WeightFormat& format, int64_t phase, int64_t begin) {
  if (format.group_blocks <= 0) return 0;
  return (phase + begin / kBlockWeights) % format.group_blocks;
}

void CutRow(const WeightFormat& format, const std::byte* row, int64_t inputs, int64_t phase,
            int64_t begin, int64_t end, std::byte* to) {
  if (begin >= end) return;
  const RowLayout from = LayoutOf(format, inputs, phase);
  const int64_t first = begin / kBlockWeights;
  const int64_t last = BlocksOf(end);
  const auto copy = [&to](const std::byte* source, int64_t entries, uint64_t entry_bytes) {
    const uint64_t bytes = Unsigned(entries) * entry_bytes;
    if (bytes > 0) std::memcpy(to, source, bytes);
    to += bytes;
  };
  const EntryRange entries = EntriesOf(format, phase, first, last);
  copy(row + Unsigned(entries.begin) * from.outer_bytes, entries.end - entries.begin,
       from.outer_bytes);
  copy(row + from.inner_at + Unsigned(first) * from.inner_bytes, last - first, from.inner_bytes);
  if (TraitsOf(format.encoding).codes_are_single) {
    copy(row + from.codes_at + Unsigned(begin) * from.code_bytes, end - begin, from.code_bytes);
  } else {
    copy(row + from.codes_at + Unsigned(first) * from.code_bytes, last - first, from.code_bytes);
  }
}

}  // namespace lockstep
