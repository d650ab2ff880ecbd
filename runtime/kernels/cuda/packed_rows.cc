#include "runtime/kernels/cuda/packed_rows.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace lockstep::kernels::cuda {
namespace {

constexpr int64_t kPlaneBytes = 16;
constexpr int64_t kWarpBlocks = 32;

int64_t Rounded(int64_t bytes) { return (bytes + kPlaneBytes - 1) / kPlaneBytes * kPlaneBytes; }

// Plain numbers and FP8 have entries of one weight.
int64_t BlockBytes(const WeightFormat& format, const RowLayout& portable) {
  const bool single = format.plain() || format.encoding == Encoding::kFp8;
  return static_cast<int64_t>(portable.code_bytes) * (single ? kBlockWeights : 1);
}

// The codes of block `lane` of `width` neighbouring ones, whose first byte is at `to`.
void ScatterBlock(const std::byte* block, int64_t bytes, int64_t lane, int64_t width,
                  std::byte* to) {
  for (int64_t at = 0; at < bytes;) {
    const int64_t left = bytes - at;
    const int64_t piece = left >= 16 ? 16 : left >= 8 ? 8 : 4;
    std::memcpy(to + at * width + lane * piece, block + at, static_cast<size_t>(piece));
    at += piece;
  }
}

}  // namespace

PackedRows LayoutOnDevice(const WeightFormat& format, int64_t outputs, int64_t inputs,
                          int64_t phase) {
  const RowLayout portable = LayoutOf(format, inputs, phase);
  const int64_t blocks = (inputs + kBlockWeights - 1) / kBlockWeights;
  PackedRows rows;
  rows.outputs = outputs;
  rows.inputs = static_cast<int32_t>(inputs);
  rows.blocks = static_cast<int32_t>(blocks);
  rows.group_blocks =
      format.group_blocks > 0 ? format.group_blocks : std::numeric_limits<int32_t>::max();
  rows.phase = static_cast<int32_t>(phase);
  rows.scale_type = format.scale_type;
  rows.inner_at = Rounded(static_cast<int64_t>(portable.outer_entries * portable.outer_bytes));
  rows.codes_at = Rounded(rows.inner_at + blocks * static_cast<int64_t>(portable.inner_bytes));
  rows.row_bytes = rows.codes_at + Rounded(blocks * BlockBytes(format, portable));
  return rows;
}

void PackRow(const WeightFormat& format, const PackedRows& layout, const std::byte* row,
             std::byte* to) {
  const RowLayout portable = LayoutOf(format, layout.inputs, layout.phase);
  const int64_t bytes = BlockBytes(format, portable);
  const auto codes = static_cast<int64_t>(portable.row_bytes - portable.codes_at);
  std::fill_n(to, layout.row_bytes, std::byte{0});
  std::copy_n(row, portable.outer_entries * portable.outer_bytes, to);
  std::copy_n(row + portable.inner_at, portable.codes_at - portable.inner_at, to + layout.inner_at);
  for (int64_t block = 0; block < layout.blocks; ++block) {
    std::byte whole[kBlockWeights * sizeof(float)] = {};
    std::copy_n(row + portable.codes_at + static_cast<uint64_t>(block * bytes),
                std::min(bytes, codes - block * bytes), whole);
    const int64_t first = block / kWarpBlocks * kWarpBlocks;
    ScatterBlock(whole, bytes, block - first, std::min<int64_t>(kWarpBlocks, layout.blocks - first),
                 to + layout.codes_at + first * bytes);
  }
}

}  // namespace lockstep::kernels::cuda
