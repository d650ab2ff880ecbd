#include "runtime/weights/stored_rows.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/base/digest.h"
#include "runtime/tensor/quantize.h"

namespace lockstep {
namespace {

// Rows are read in chunks of about this size: large enough for a disk, small enough for the cache
// to keep until they are transcoded or looked at.
constexpr uint64_t kChunkBytes = uint64_t{2} << 20;

Status CompareChecksum(const TensorInfo& info, const std::string& name, uint64_t checksum) {
  if (checksum == info.slice->checksum) return OkStatus();
  return ModelError(
      "%s: tensor %s does not match its checksum; the file is damaged: copy it again, or run "
      "lockstep shard again",
      info.data.file->path(), name);
}

Status NotFinite(const TensorInfo& info, const std::string& name) {
  return ModelError(
      "%s: tensor %s holds values that are not finite (NaN or infinity); the checkpoint is broken",
      info.data.file->path(), name);
}

// Rows of a coded tensor, or of some columns of one, that are read and transcoded at once, from
// multiples of their number on.
int64_t ChunkRows(const TensorInfo& info, int64_t width) {
  const uint64_t row_bytes = LayoutOf(info.format, width, 0).row_bytes;
  const auto rows = static_cast<int64_t>(std::max<uint64_t>(1, kChunkBytes / (row_bytes + 1)));
  // The rows of a tile share their scales: read those once.
  return info.storage == Storage::kFp8 ? (rows + kFp8Tile - 1) / kFp8Tile * kFp8Tile : rows;
}

}  // namespace

void PlanReads(const TensorInfo& info, Range rows, std::vector<PlannedRead>* reads) {
  const auto add = [reads](const StoredArray& array, StridedRange range) {
    if (range.bytes > 0) reads->push_back({array.file, range.offset, range.bytes});
  };
  if (info.slice.has_value()) return add(info.data, {info.data.offset, info.data.bytes});
  if (info.storage == Storage::kConverted) return PlanReads(*info.original, rows, reads);
  if (info.shape.size() == 1) {
    const uint64_t element =
        info.data.bytes / static_cast<uint64_t>(std::max<int64_t>(1, info.shape[0]));
    return add(info.data, {info.data.offset + static_cast<uint64_t>(rows.begin) * element,
                           static_cast<uint64_t>(rows.size()) * element});
  }
  const int64_t step = ChunkRows(info, info.shape.back());
  for (int64_t begin = rows.begin; begin < rows.end;) {
    const int64_t end = std::min(rows.end, (begin / step + 1) * step);
    const StatusOr<PartRanges> ranges = RangesOf(info, "", WholeRows(info, {begin, end}));
    if (!ranges.ok()) return;
    add(info.data, ranges->data);
    add(info.scales, ranges->scales);
    add(info.biases, ranges->biases);
    add(info.whole_scale, ranges->whole_scale);
    begin = end;
  }
}

Status StoredRowReader::ReadRange(const StoredArray& array, StridedRange range, std::byte* to) {
  const std::span<std::byte> out(to, range.total());
  if (out.empty()) return OkStatus();
  if (range.count > 1) {
    LOCKSTEP_RETURN_IF_ERROR(array.file->ReadStrided(range, out));
  } else {
    LOCKSTEP_RETURN_IF_ERROR(ahead_ != nullptr ? ahead_->Read(*array.file, range.offset, out)
                                               : array.file->Read(range.offset, out));
  }
  bytes_read_ += out.size();
  if (progress_) progress_(bytes_read_);
  return OkStatus();
}

StatusOr<std::span<const std::byte>> StoredRowReader::ReadInto(std::vector<std::byte>& to,
                                                               const StoredArray& array,
                                                               StridedRange range) {
  to.resize(range.total());
  LOCKSTEP_RETURN_IF_ERROR(ReadRange(array, range, to.data()));
  return std::span<const std::byte>(to);
}

Status StoredRowReader::ReadPlain(const TensorInfo& info, const std::string& name,
                                  StridedRange range, std::byte* to) {
  const uint64_t element = SizeOf(info.format.plain_type());
  for (uint64_t done = 0; done < range.bytes; done += kChunkBytes) {
    const uint64_t bytes = std::min(kChunkBytes, range.bytes - done);
    LOCKSTEP_RETURN_IF_ERROR(ReadRange(info.data, {range.offset + done, bytes}, to + done));
    if (!RowIsFinite(info.format, to + done, static_cast<int64_t>(bytes / element), 0)) {
      return NotFinite(info, name);
    }
  }
  return OkStatus();
}

Status StoredRowReader::ReadCoded(const TensorInfo& info, const std::string& name,
                                  const TensorPart& part, std::byte* to) {
  LOCKSTEP_ASSIGN_OR_RETURN(const PartRanges ranges, RangesOf(info, name, part));
  PartBytes bytes;
  LOCKSTEP_ASSIGN_OR_RETURN(bytes.data, ReadInto(data_, info.data, ranges.data));
  LOCKSTEP_ASSIGN_OR_RETURN(bytes.scales, ReadInto(scales_, info.scales, ranges.scales));
  LOCKSTEP_ASSIGN_OR_RETURN(bytes.biases, ReadInto(biases_, info.biases, ranges.biases));
  LOCKSTEP_ASSIGN_OR_RETURN(bytes.whole_scale,
                            ReadInto(whole_scale_, info.whole_scale, ranges.whole_scale));
  return TranscodePart(info, name, bytes, part, to);
}

Status StoredRowReader::ReadConverted(const TensorInfo& info, const std::string& name, Range rows,
                                      std::byte* to) {
  const TensorInfo& original = *info.original;
  const int64_t width = info.shape[1];
  const uint64_t from_bytes = LayoutOf(original.format, width, 0).row_bytes;
  const uint64_t to_bytes = LayoutOf(info.format, width, 0).row_bytes;
  const auto step = static_cast<int64_t>(std::max<uint64_t>(1, kChunkBytes / (from_bytes + 1)));
  values_.resize(static_cast<size_t>(width));
  for (int64_t begin = rows.begin; begin < rows.end; begin += step) {
    const Range chunk{begin, std::min(rows.end, begin + step)};
    original_.resize(static_cast<uint64_t>(chunk.size()) * from_bytes);
    LOCKSTEP_RETURN_IF_ERROR(Read(original, name, chunk, original_.data()));
    for (int64_t row = 0; row < chunk.size(); ++row, to += to_bytes) {
      DecodeRow(original.format, original_.data() + static_cast<uint64_t>(row) * from_bytes, width,
                0, 0, width, values_.data());
      const bool finite =
          std::all_of(values_.begin(), values_.end(), [](float v) { return std::isfinite(v); });
      if (!finite) return NotFinite(info, name);
      if (info.format == WeightFormat(DType::kF32)) {
        std::memcpy(to, values_.data(), to_bytes);
      } else {
        QuantizeRow(info.format, values_.data(), width, to);
      }
    }
  }
  return OkStatus();
}

Status StoredRowReader::Read(const TensorInfo& info, const std::string& name, Range rows,
                             std::byte* to) {
  return ReadPart(info, name, WholeRows(info, rows), to);
}

Status StoredRowReader::ReadPart(const TensorInfo& info, const std::string& name,
                                 const TensorPart& part, std::byte* to) {
  const auto [rows, columns] = part;
  if (info.storage == Storage::kConverted) {
    LOCKSTEP_CHECK(columns == WholeRows(info, rows).columns);
    return ReadConverted(info, name, rows, to);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const PartRanges ranges, RangesOf(info, name, part));
  if (info.storage == Storage::kPlain && ranges.data.count == 1)
    return ReadPlain(info, name, ranges.data, to);
  const uint64_t row_bytes = LayoutOf(info.format, columns.size(), 0).row_bytes;
  const int64_t step = ChunkRows(info, columns.size());
  for (int64_t begin = rows.begin; begin < rows.end;) {
    const Range chunk{begin, std::min(rows.end, (begin / step + 1) * step)};
    LOCKSTEP_RETURN_IF_ERROR(ReadCoded(info, name, {chunk, columns}, to));
    to += static_cast<uint64_t>(chunk.size()) * row_bytes;
    begin = chunk.end;
  }
  return OkStatus();
}

Status StoredRowReader::ReadSlice(const TensorInfo& info, const std::string& name, std::byte* to) {
  LOCKSTEP_CHECK(info.slice.has_value());
  DigestStream digest;
  for (uint64_t done = 0; done < info.data.bytes; done += kChunkBytes) {
    const uint64_t bytes = std::min(kChunkBytes, info.data.bytes - done);
    LOCKSTEP_RETURN_IF_ERROR(ReadRange(info.data, {info.data.offset + done, bytes}, to + done));
    digest.Add({to + done, bytes});
  }
  return CompareChecksum(info, name, digest.Value());
}

Status StoredRowReader::CheckSlice(const TensorInfo& info, const std::string& name) {
  LOCKSTEP_CHECK(info.slice.has_value());
  DigestStream digest;
  for (uint64_t done = 0; done < info.data.bytes; done += kChunkBytes) {
    const uint64_t bytes = std::min(kChunkBytes, info.data.bytes - done);
    LOCKSTEP_ASSIGN_OR_RETURN(const auto read,
                              ReadInto(data_, info.data, {info.data.offset + done, bytes}));
    digest.Add(read);
  }
  return CompareChecksum(info, name, digest.Value());
}

Status StoredRowReader::ReadVector(const TensorInfo& info, const std::string& name, Range elements,
                                   std::byte* to) {
  LOCKSTEP_ASSIGN_OR_RETURN(const PartRanges ranges, RangesOf(info, name, WholeRows(info, {0, 1})));
  const uint64_t element = SizeOf(info.format.plain_type());
  const StridedRange range{ranges.data.offset + static_cast<uint64_t>(elements.begin) * element,
                           static_cast<uint64_t>(elements.size()) * element};
  return ReadPlain(info, name, range, to);
}

}  // namespace lockstep
