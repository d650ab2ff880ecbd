// What must hold of the tensors that the reader of a checkpoint's files found, for any bytes.
#pragma once

#include <map>
#include <string>

#include "runtime/base/check.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/transcode.h"

namespace lockstep {

inline void CheckRange(const StoredArray& array, const StridedRange& range, uint64_t file_bytes) {
  if (range.total() == 0) return;
  const uint64_t all = (range.count - 1) * range.stride + range.bytes;
  LOCKSTEP_CHECK(array.present());
  LOCKSTEP_CHECK(array.offset <= file_bytes && array.bytes <= file_bytes - array.offset);
  LOCKSTEP_CHECK(range.offset >= array.offset && all <= array.bytes &&
                 range.offset - array.offset <= array.bytes - all);
}

// All rows lie in their own arrays, and these in the file.
inline void CheckRows(const std::map<std::string, TensorInfo>& tensors, uint64_t file_bytes) {
  for (const auto& [name, info] : tensors) {
    const int64_t rows = info.shape.size() > 1 ? info.shape[0] : 1;
    const int64_t width = info.shape.empty() ? 0 : info.shape.back();
    const Range half = WholeColumnUnits(info.format, {0, width / 2}, width);
    for (const TensorPart& part : {WholeRows(info, {0, rows}), WholeRows(info, {rows / 2, rows}),
                                   WholeRows(info, {rows, rows}), TensorPart{{0, rows}, half},
                                   TensorPart{{rows / 2, rows}, {half.end, width}}}) {
      const StatusOr<PartRanges> ranges = RangesOf(info, name, part);
      if (!ranges.ok()) continue;
      CheckRange(info.data, ranges->data, file_bytes);
      CheckRange(info.scales, ranges->scales, file_bytes);
      CheckRange(info.biases, ranges->biases, file_bytes);
      CheckRange(info.whole_scale, ranges->whole_scale, file_bytes);
    }
  }
}

}  // namespace lockstep
