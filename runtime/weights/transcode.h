// From a file's rows to portable rows (tensor/weight_format.h), exactly: no weight changes its
// value, whatever the file says it in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "runtime/base/status.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/ggml_blocks.h"

namespace lockstep {

// Counts up with every change of the portable rows that a file's rows become: work that an older
// build began is then not continued with other bytes.
inline constexpr uint64_t kTranscoderVersion = 2;

// A piece of a file.
struct FileRange {
  uint64_t offset = 0;
  uint64_t bytes = 0;
};

// What must be read for some rows of a tensor: pieces of its arrays, each of that array's file.
// Empty pieces are of arrays that the tensor does not have.
struct RowRanges {
  FileRange data, scales, biases, whole_scale;
};

// Where rows [first, first + rows) lie. A tensor of one dimension is one row. An error, which says
// `name`, if the arrays are not as large as the tensor's shape and format say, if the rows are
// outside, or if a row is not whole blocks: so no range is ever outside its array.
StatusOr<RowRanges> RangesOf(const TensorInfo& info, const std::string& name, int64_t first,
                             int64_t rows);

// The bytes of those ranges.
struct RowBytes {
  std::span<const std::byte> data, scales, biases, whole_scale;
};

// Writes rows [first, first + rows) of the tensor to `portable`, one row of
// LayoutOf(info.format, inputs, 0).row_bytes behind the other. `bytes` are those of
// RangesOf(info, name, first, rows). Numbers that are not finite, in scales or weights, are an
// error that says `name`. Any thread; no state.
Status TranscodeRows(const TensorInfo& info, const std::string& name, const RowBytes& bytes,
                     int64_t first, int64_t rows, std::byte* portable);

// False if a scale of the row, or a number of a plain or FP8 row, is infinite or NaN.
bool RowIsFinite(const WeightFormat& format, const std::byte* row, int64_t inputs, int64_t phase);

}  // namespace lockstep
