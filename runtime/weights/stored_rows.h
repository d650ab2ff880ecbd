// Rows of one tensor, from its files to portable rows.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/partition.h"
#include "runtime/weights/read_ahead.h"
#include "runtime/weights/transcode.h"

namespace lockstep {

// The reads that rows of a tensor, or elements of a vector, will take, for a ReadAhead, in about
// their order. Of a tensor stored as a slice: of all of it. Nothing if the arrays do not fit the
// tensor: who reads them says so.
void PlanReads(const TensorInfo& info, Range rows, std::vector<PlannedRead>* reads);

// Of one thread.
class StoredRowReader {
 public:
  // `progress` is called with the bytes read so far; may be empty.
  explicit StoredRowReader(std::function<void(uint64_t)> progress)
      : progress_(std::move(progress)) {}

  // What follows is read through `ahead`, which must outlive it; nullptr: from the files.
  void ReadThrough(ReadAhead* ahead) { ahead_ = ahead; }

  // Rows [rows.begin, rows.end) of a matrix in the tensor's own format, uncut, one behind the
  // other. Plain numbers and scales that are not finite are an error. Quantized rows pass through a
  // few MiB of memory, plain ones are read where they stay. Rows of a converted tensor are decoded
  // and quantized, so they do not depend on how they are read.
  Status Read(const TensorInfo& info, const std::string& name, Range rows, std::byte* to);
  // The same of a part of a matrix, as TranscodePart gives it; of a converted tensor whole rows
  // only.
  Status ReadPart(const TensorInfo& info, const std::string& name, const TensorPart& part,
                  std::byte* to);
  // Elements of a vector of plain numbers, in its own type.
  Status ReadVector(const TensorInfo& info, const std::string& name, Range elements, std::byte* to);
  // All bytes of a tensor that is stored as a slice, compared with their checksum.
  Status ReadSlice(const TensorInfo& info, const std::string& name, std::byte* to);
  // The same without keeping the bytes: through a few MiB of memory.
  Status CheckSlice(const TensorInfo& info, const std::string& name);
  // As the files store them, scales included.
  uint64_t bytes_read() const { return bytes_read_; }

 private:
  Status ReadPlain(const TensorInfo& info, const std::string& name, StridedRange range,
                   std::byte* to);
  Status ReadConverted(const TensorInfo& info, const std::string& name, Range rows, std::byte* to);
  Status ReadCoded(const TensorInfo& info, const std::string& name, const TensorPart& part,
                   std::byte* to);
  Status ReadRange(const StoredArray& array, StridedRange range, std::byte* to);
  StatusOr<std::span<const std::byte>> ReadInto(std::vector<std::byte>& to,
                                                const StoredArray& array, StridedRange range);

  std::function<void(uint64_t)> progress_;
  ReadAhead* ahead_ = nullptr;
  uint64_t bytes_read_ = 0;
  std::vector<std::byte> data_, scales_, biases_, whole_scale_;  // as stored
  std::vector<std::byte> original_;                              // rows before their conversion
  std::vector<float> values_;
};

}  // namespace lockstep
