// What must hold of the tensors that the reader of a checkpoint's files found, for any bytes.
#pragma once

#include <map>
#include <string>

#include "runtime/base/check.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/transcode.h"

namespace lockstep {

inline void CheckRange(const StoredArray& array, const FileRange& range, uint64_t file_bytes) {
  if (range.bytes == 0) return;
  LOCKSTEP_CHECK(array.present());
  LOCKSTEP_CHECK(array.offset <= file_bytes && array.bytes <= file_bytes - array.offset);
  LOCKSTEP_CHECK(range.offset >= array.offset && range.bytes <= array.bytes &&
                 range.offset - array.offset <= array.bytes - range.bytes);
}

// All rows lie in their own arrays, and these in the file.
inline void CheckRows(const std::map<std::string, TensorInfo>& tensors, uint64_t file_bytes) {
  for (const auto& [name, info] : tensors) {
    const int64_t rows = info.shape.size() > 1 ? info.shape[0] : 1;
    for (const int64_t first : {int64_t{0}, rows / 2, rows}) {
      const StatusOr<RowRanges> ranges = RangesOf(info, name, first, rows - first);
      if (!ranges.ok()) continue;
      CheckRange(info.data, ranges->data, file_bytes);
      CheckRange(info.scales, ranges->scales, file_bytes);
      CheckRange(info.biases, ranges->biases, file_bytes);
      CheckRange(info.whole_scale, ranges->whole_scale, file_bytes);
    }
  }
}

}  // namespace lockstep
