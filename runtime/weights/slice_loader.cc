#include "runtime/weights/slice_loader.h"

#include <algorithm>
#include <optional>

#include "runtime/base/check.h"
#include "runtime/weights/shard_file.h"

namespace lockstep {
namespace {

// Rows whose format changes pass through memory of about this size.
constexpr uint64_t kChunkBytes = uint64_t{4} << 20;
// What the threads of a pool share out at a time; by tiles of FP8, whose rows have common scales.
constexpr uint64_t kSharedBytes = uint64_t{64} << 20;

Status CheckReadable(const TensorInfo& info, const std::string& name) {
  if (info.storage != Storage::kPlain) return OkStatus();
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (info.data.type == NameOf(type)) return OkStatus();
  }
  return ModelError(
      "%s: tensor %s is %s with no scales that go with it; this build reads BF16, F16 and F32, and "
      "FP8, NVFP4, MLX and GGUF formats",
      info.data.file->path(), name, info.data.type);
}

StatusOr<const TensorInfo*> FindReadable(const Checkpoint& checkpoint, const std::string& name) {
  const TensorInfo* info = checkpoint.Find(name);
  if (info == nullptr) {
    return ModelError(
        "%s: tensor %s is missing; the checkpoint is incomplete or not of this architecture",
        checkpoint.path(), name);
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckReadable(*info, name));
  return info;
}

}  // namespace

StatusOr<const TensorInfo*> FindShaped(const Checkpoint& checkpoint, const std::string& name,
                                       const std::vector<int64_t>& shape) {
  LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* info, FindReadable(checkpoint, name));
  if (info->shape == shape) return info;
  return ModelError("%s: tensor %s has shape %s, but config.json means %s", info->data.file->path(),
                    name, info->ShapeText(), ShapeText(shape));
}

StatusOr<WeightFormat> CommonFormat(const Checkpoint& checkpoint,
                                    const std::vector<std::string>& names) {
  std::optional<WeightFormat> common;
  for (const std::string& name : names) {
    LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* info, FindReadable(checkpoint, name));
    if (common.has_value() && *common != info->format) return WeightFormat(DType::kF32);
    common = info->format;
  }
  return common.value_or(WeightFormat(DType::kF32));
}

bool CutsFit(const WeightFormat& format, int64_t width, const std::vector<Range>& columns) {
  const int64_t unit = format.cut_weights();
  return std::all_of(columns.begin(), columns.end(), [&](const Range& range) {
    return range.empty() ||
           (range.begin % unit == 0 && (range.end % unit == 0 || range.end == width));
  });
}

std::vector<PlannedRead> PlanReads(const Checkpoint& checkpoint, const std::vector<double>& shares,
                                   int rank, const std::vector<SliceRequest>& requests) {
  std::vector<PlannedRead> reads;
  for (const SliceRequest& request : requests) {
    const TensorInfo* info = checkpoint.Find(request.name);
    if (info == nullptr || info->shape.empty()) continue;
    Range rows = request.slice.range;
    // As ReadColumns divides them.
    if (request.slice.kind == SliceKind::kColumns && !info->slice.has_value())
      rows = CutByShares(info->shape[0], shares)[static_cast<size_t>(rank)];
    if (!rows.empty()) PlanReads(*info, rows, &reads);
  }
  return reads;
}

SliceLoader::SliceLoader(const Checkpoint& checkpoint, Group& group, std::vector<double> shares,
                         std::function<void(uint64_t)> progress, ThreadPool* pool)
    : checkpoint_(checkpoint),
      group_(group),
      shares_(std::move(shares)),
      progress_(std::move(progress)),
      pool_(pool) {
  if (pool == nullptr) {
    lanes_.push_back({StoredRowReader(progress_), {}});
  } else {
    for (int thread = 0; thread < pool->count(); ++thread)
      lanes_.push_back({StoredRowReader({}), {}});
  }
  sends_.resize(static_cast<size_t>(group.size()));
}

Status SliceLoader::ReadAheadFor(const std::vector<SliceRequest>& requests) {
  LOCKSTEP_ASSIGN_OR_RETURN(ahead_,
                            ReadAhead::Start(PlanReads(checkpoint_, shares_, rank(), requests)));
  for (Lane& lane : lanes_) lane.reader.ReadThrough(ahead_.get());
  return OkStatus();
}

uint64_t SliceLoader::bytes_read() const {
  uint64_t bytes = 0;
  for (const Lane& lane : lanes_) bytes += lane.reader.bytes_read();
  return bytes;
}

Status SliceLoader::ReadAs(const WeightFormat& format, const TensorInfo& info,
                           const std::string& name, Range rows, std::byte* to) {
  if (pool_ == nullptr) return ReadOnLane(lanes_[0], format, info, name, rows, to);
  const uint64_t row_bytes = LayoutOf(format, info.shape[1], 0).row_bytes;
  // The threads stay close to each other in the file, and progress is told now and then.
  const auto most = static_cast<int64_t>(kSharedBytes / (row_bytes + 1)) + 1;
  const int64_t step = (most + kFp8Tile - 1) / kFp8Tile * kFp8Tile;
  std::vector<Status> failed(lanes_.size(), OkStatus());
  for (int64_t first = rows.begin; first < rows.end; first += step) {
    pool_->ParallelFor(
        std::min(step, rows.end - first), kFp8Tile, [&](int64_t begin, int64_t end, int thread) {
          std::byte* part = to + static_cast<uint64_t>(first - rows.begin + begin) * row_bytes;
          failed[static_cast<size_t>(thread)] =
              ReadOnLane(lanes_[static_cast<size_t>(thread)], format, info, name,
                         {first + begin, first + end}, part);
        });
    for (const Status& status : failed) LOCKSTEP_RETURN_IF_ERROR(status);
    if (progress_) progress_(bytes_read());
  }
  return OkStatus();
}

Status SliceLoader::ReadOnLane(Lane& lane, const WeightFormat& format, const TensorInfo& info,
                               const std::string& name, Range rows, std::byte* to) {
  if (format == info.format) return lane.reader.Read(info, name, rows, to);
  LOCKSTEP_CHECK(format == WeightFormat(DType::kF32));
  const int64_t width = info.shape[1];
  const uint64_t row_bytes = LayoutOf(info.format, width, 0).row_bytes;
  const auto step = static_cast<int64_t>(std::max<uint64_t>(1, kChunkBytes / (row_bytes + 1)));
  auto* values = reinterpret_cast<float*>(to);
  for (int64_t begin = rows.begin; begin < rows.end; begin += step) {
    const Range chunk{begin, std::min(rows.end, begin + step)};
    lane.own_format.resize(static_cast<uint64_t>(chunk.size()) * row_bytes);
    LOCKSTEP_RETURN_IF_ERROR(lane.reader.Read(info, name, chunk, lane.own_format.data()));
    for (int64_t row = 0; row < chunk.size(); ++row, values += width) {
      DecodeRow(info.format, lane.own_format.data() + static_cast<uint64_t>(row) * row_bytes, width,
                0, 0, width, values);
    }
  }
  return OkStatus();
}

Status SliceLoader::ReadStoredSlice(const WeightFormat& format, const TensorInfo& info,
                                    const std::string& name, const TensorSlice& needed,
                                    std::byte* to) {
  const TensorSlice& stored = info.slice->what;
  if (!(stored == needed)) {
    return ModelError(
        "%s: holds [%d, %d) of tensor %s, but this rank needs [%d, %d); run lockstep shard again "
        "with this build",
        info.data.file->path(), stored.range.begin, stored.range.end, name, needed.range.begin,
        needed.range.end);
  }
  if (needed.range.empty()) return OkStatus();
  Lane& lane = lanes_[0];
  if (format == info.format) return lane.reader.ReadSlice(info, name, to);
  LOCKSTEP_CHECK(format == WeightFormat(DType::kF32));
  lane.own_format.resize(info.data.bytes);
  LOCKSTEP_RETURN_IF_ERROR(lane.reader.ReadSlice(info, name, lane.own_format.data()));
  const ShardTensor slice{name, info.shape, needed, info.format};
  const int64_t rows = ShardRows(slice);
  const uint64_t row_bytes = ShardRowBytes(slice);
  const int64_t width = needed.kind == SliceKind::kRows ? info.shape[1] : needed.range.size();
  const int64_t phase =
      needed.kind == SliceKind::kColumns ? PhaseAt(info.format, 0, needed.range.begin) : 0;
  auto* values = reinterpret_cast<float*>(to);
  for (int64_t row = 0; row < rows; ++row, values += width) {
    DecodeRow(info.format, lane.own_format.data() + static_cast<uint64_t>(row) * row_bytes, width,
              phase, 0, width, values);
  }
  return OkStatus();
}

Status SliceLoader::ReadRows(const std::string& name, int64_t height, Range rows, HostMatrix* to,
                             int64_t index, int64_t at) {
  LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* info,
                            FindShaped(checkpoint_, name, {height, to->inputs}));
  if (info->slice.has_value()) {
    return ReadStoredSlice(to->format, *info, name, {SliceKind::kRows, rows}, to->row(index, at));
  }
  if (rows.empty() || to->inputs == 0) return OkStatus();
  LOCKSTEP_CHECK(to->phase == 0);
  return ReadAs(to->format, *info, name, rows, to->row(index, at));
}

Status SliceLoader::ReadColumns(const std::string& name, int64_t width,
                                const std::vector<Range>& columns, HostMatrix* to, int64_t index) {
  const int64_t height = to->outputs;
  LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* info, FindShaped(checkpoint_, name, {height, width}));
  LOCKSTEP_CHECK(CutsFit(to->format, width, columns));
  if (info->slice.has_value()) {
    const Range cut = columns[static_cast<size_t>(rank())];
    return ReadStoredSlice(to->format, *info, name, {SliceKind::kColumns, cut}, to->row(index, 0));
  }
  // Alone: every column, and nobody to swap with.
  if (group_.size() == 1) return ReadAs(to->format, *info, name, {0, height}, to->row(index, 0));
  const std::vector<Range> rows = CutByShares(height, shares_);
  const Range mine = rows[static_cast<size_t>(rank())];
  const uint64_t row_bytes = LayoutOf(to->format, width, 0).row_bytes;
  rows_.resize(static_cast<uint64_t>(mine.size()) * row_bytes);
  if (!mine.empty()) LOCKSTEP_RETURN_IF_ERROR(ReadAs(to->format, *info, name, mine, rows_.data()));
  std::vector<std::span<const std::byte>> sends;
  std::vector<std::span<std::byte>> receives;
  for (size_t peer = 0; peer < columns.size(); ++peer) {
    const Range cut = columns[peer];
    const int64_t phase = cut.empty() ? 0 : PhaseAt(to->format, 0, cut.begin);
    const uint64_t segment = cut.empty() ? 0 : LayoutOf(to->format, cut.size(), phase).row_bytes;
    sends_[peer].resize(segment * static_cast<uint64_t>(mine.size()));
    for (int64_t row = 0; row < mine.size() && segment > 0; ++row) {
      CutRow(to->format, rows_.data() + static_cast<uint64_t>(row) * row_bytes, width, 0, cut.begin,
             cut.end, sends_[peer].data() + static_cast<uint64_t>(row) * segment);
    }
    sends.emplace_back(sends_[peer]);
    const uint64_t own = to->inputs == 0 ? 0 : to->row_bytes();
    receives.emplace_back(
        to->data.data() + static_cast<uint64_t>(index * height + rows[peer].begin) * own,
        static_cast<uint64_t>(rows[peer].size()) * own);
  }
  // A disk may be slow on one rank only: the others wait as long as it is alive.
  return AllToAll(group_, sends, receives, Patience::kIdle);
}

StatusOr<std::vector<float>> SliceLoader::ReadVector(const std::string& name, int64_t length,
                                                     Range elements) {
  LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* info, FindShaped(checkpoint_, name, {length}));
  std::vector<float> values(static_cast<size_t>(elements.empty() ? 0 : elements.size()));
  if (info->slice.has_value()) {
    const TensorSlice needed{SliceKind::kElements, elements};
    LOCKSTEP_RETURN_IF_ERROR(ReadStoredSlice(DType::kF32, *info, name, needed,
                                             reinterpret_cast<std::byte*>(values.data())));
    return values;
  }
  if (info->storage != Storage::kPlain) {
    return ModelError("%s: tensor %s is quantized (%s), but a vector is kept in BF16, F16 or F32",
                      info->data.file->path(), name, info->format.Name());
  }
  if (values.empty()) return values;
  Lane& lane = lanes_[0];
  lane.own_format.resize(values.size() * SizeOf(info->format.plain_type()));
  LOCKSTEP_RETURN_IF_ERROR(lane.reader.ReadVector(*info, name, elements, lane.own_format.data()));
  DecodeRow(info->format, lane.own_format.data(), elements.size(), 0, 0, elements.size(),
            values.data());
  return values;
}

}  // namespace lockstep
