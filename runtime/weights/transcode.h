// From a file's rows to portable rows (tensor/weight_format.h), exactly: no weight changes its
// value, whatever the file says it in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/ggml_blocks.h"
#include "runtime/weights/partition.h"

namespace lockstep {

// Counts up with every change of the portable rows that a file's rows become: work that an older
// build began is then not continued with other bytes.
inline constexpr uint64_t kTranscoderVersion = 2;

// Columns that begin and end at multiples of this, or where the row ends, can be read without the
// rest of their rows: no block, group or tile of the format reaches across.
int64_t ColumnUnit(const WeightFormat& format);
// The smallest such range that holds `columns` of rows of `width`.
Range WholeColumnUnits(const WeightFormat& format, Range columns, int64_t width);

// What part of a matrix is read.
struct TensorPart {
  Range rows;
  Range columns;  // WholeColumnUnits of the matrix
};
// These rows, all columns. A tensor of one dimension is one row.
TensorPart WholeRows(const TensorInfo& info, Range rows);

// What must be read for a part of a tensor: ranges of its arrays, each of that array's file, with
// one piece where rows are whole. Empty ranges are of arrays that the tensor does not have.
struct PartRanges {
  StridedRange data, scales, biases, whole_scale;
};

// Where a part lies. An error, which says `name`, if the arrays are not as large as the tensor's
// shape and format say, if the part is outside, or if a row is not whole blocks: so no range is
// ever outside its array.
StatusOr<PartRanges> RangesOf(const TensorInfo& info, const std::string& name,
                              const TensorPart& part);

// The bytes of those ranges.
struct PartBytes {
  std::span<const std::byte> data, scales, biases, whole_scale;
};

// Writes a part of the tensor to `portable`, one row of LayoutOf(info.format, part.columns.size(),
// 0).row_bytes behind the other: of all columns its rows, of some those of a matrix that has no
// others. `bytes` are those of RangesOf(info, name, part). Numbers that are not finite, in scales
// or weights, are an error that says `name`. Any thread; no state.
Status TranscodePart(const TensorInfo& info, const std::string& name, const PartBytes& bytes,
                     const TensorPart& part, std::byte* portable);

// False if a scale of the row, or a number of a plain or FP8 row, is infinite or NaN.
bool RowIsFinite(const WeightFormat& format, const std::byte* row, int64_t inputs, int64_t phase);

}  // namespace lockstep
