#include "runtime/weights/sharder.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <thread>
#include <utility>

#include "runtime/base/digest.h"
#include "runtime/tensor/quantize.h"
#include "runtime/weights/shard_file.h"
#include "runtime/weights/shard_output.h"
#include "runtime/weights/slice_loader.h"
#include "runtime/weights/stored_rows.h"
#include "runtime/weights/transcode.h"

namespace lockstep {
namespace {

// One tensor on its way to all ranks.
struct Task {
  TensorInfo info;  // in the format of the files
  std::string name;
  std::vector<size_t> places;  // its index in the header of every rank
};

struct Plan {
  std::vector<ShardHeader> headers;
  std::vector<uint64_t> sizes;
  std::vector<Task> tasks;
  std::map<std::string, WeightFormat> formats;  // those that change
};

// The format in the files: the wanted one where this can be cut.
WeightFormat FormatOf(const Task& task, const std::vector<ShardHeader>& headers,
                      const ShardOptions& options) {
  const auto wanted = options.formats.find(task.name);
  const WeightFormat format = wanted == options.formats.end() ? task.info.format : wanted->second;
  std::vector<Range> columns;
  for (size_t rank = 0; rank < headers.size(); ++rank) {
    const TensorSlice& slice = headers[rank].tensors[task.places[rank]].slice;
    if (slice.kind == SliceKind::kColumns) columns.push_back(slice.range);
  }
  const bool fits = columns.empty() || CutsFit(format, task.info.shape[1], columns);
  return fits ? format : WeightFormat(DType::kF32);
}

// The tensors of one rank, each once.
Status AddTensors(const Checkpoint& source, const std::vector<SliceRequest>& slices,
                  ShardHeader* header, std::map<std::string, size_t>* places) {
  for (const SliceRequest& request : slices) {
    const auto [place, added] = places->emplace(request.name, header->tensors.size());
    if (!added) {
      if (header->tensors[place->second].slice == request.slice) continue;
      return InternalError("tensor %s is needed in two different slices", request.name);
    }
    const TensorInfo* info = source.Find(request.name);
    if (info == nullptr) return ModelError("%s: tensor %s is missing", source.path(), request.name);
    ShardTensor tensor;
    tensor.name = request.name;
    tensor.shape = info->shape;
    tensor.slice = request.slice;
    if (tensor.slice.range.empty()) tensor.slice.range = {};
    header->tensors.push_back(std::move(tensor));
  }
  return OkStatus();
}

StatusOr<Plan> MakePlan(const Checkpoint& source, const ShardOptions& options) {
  Plan plan;
  LOCKSTEP_ASSIGN_OR_RETURN(const uint64_t digest, source.Digest());
  std::vector<std::map<std::string, size_t>> places(options.shares.size());
  for (size_t rank = 0; rank < options.shares.size(); ++rank) {
    ShardHeader header;
    header.source = digest;
    header.rank = static_cast<int>(rank);
    header.shares = options.shares;
    header.config = source.config();
    LOCKSTEP_RETURN_IF_ERROR(AddTensors(source, options.slices[rank], &header, &places[rank]));
    plan.headers.push_back(std::move(header));
  }
  for (const ShardTensor& tensor : plan.headers[0].tensors) {
    Task task{*source.Find(tensor.name), tensor.name, {}};
    for (const auto& of_rank : places) {
      const auto place = of_rank.find(tensor.name);
      if (place == of_rank.end() || of_rank.size() != places[0].size())
        return InternalError("ranks ask for different tensors, %s among them", tensor.name);
      task.places.push_back(place->second);
    }
    plan.tasks.push_back(std::move(task));
  }
  for (Task& task : plan.tasks) {
    const WeightFormat format = FormatOf(task, plan.headers, options);
    if (format != task.info.format) {
      task.info = Converted(task.info, format);
      plan.formats[task.name] = format;
    }
    for (size_t rank = 0; rank < plan.headers.size(); ++rank)
      plan.headers[rank].tensors[task.places[rank]].format = format;
  }
  uint64_t settings = kTranscoderVersion << 32 | (plan.formats.empty() ? 0 : kQuantizerVersion);
  for (ShardHeader& header : plan.headers) {
    plan.sizes.push_back(PlaceShardTensors(&header));
    settings = ShardSettings(header, settings);
  }
  for (ShardHeader& header : plan.headers) header.settings = settings;
  return plan;
}

// The other ranks count for the digest of the settings only.
void KeepRank(Plan* plan, size_t rank) {
  plan->headers = {std::move(plan->headers[rank])};
  plan->sizes = {plan->sizes[rank]};
  for (Task& task : plan->tasks) task.places = {task.places[rank]};
}

// What all threads share.
struct Shared {
  const Plan& plan;
  const ShardOptions& options;
  ShardOutput& output;
  uint64_t total = 0;
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  std::mutex mutex;  // over what follows
  Status status = OkStatus();
  uint64_t written = 0;

  bool Stopped() const { return failed || (options.stop && options.stop()); }
  void Fail(const Status& error) {
    const std::lock_guard lock(mutex);
    if (status.ok()) status = error;
    failed = true;
  }
  void Count(uint64_t bytes) {
    const std::lock_guard lock(mutex);
    written += bytes;
    if (options.progress) options.progress(written, total);
  }
};

// One thread's work.
class Worker {
 public:
  explicit Worker(Shared& shared) : shared_(shared), reader_({}) {}

  void Run() {
    while (!shared_.Stopped()) {
      const size_t index = shared_.next++;
      if (index >= shared_.plan.tasks.size()) return;
      if (shared_.output.IsDone(index)) continue;
      if (const Status status = Shard(index); !status.ok()) return shared_.Fail(status);
    }
    shared_.Fail(InterruptedError());
  }

 private:
  Status Shard(size_t index) {
    const Task& task = shared_.plan.tasks[index];
    digests_.clear();
    digests_.resize(shared_.plan.headers.size());
    LOCKSTEP_RETURN_IF_ERROR(task.info.shape.size() == 1 ? Vector(task) : Matrix(task));
    std::vector<uint64_t> checksums;
    for (const DigestStream& digest : digests_) checksums.push_back(digest.Value());
    return shared_.output.Done(index, checksums);
  }

  const ShardTensor& TensorOf(const Task& task, size_t rank) const {
    return shared_.plan.headers[rank].tensors[task.places[rank]];
  }

  // `at`: in the slice. Called in ascending order.
  Status Put(const Task& task, size_t rank, uint64_t at, std::span<const std::byte> bytes) {
    digests_[rank].Add(bytes);
    LOCKSTEP_RETURN_IF_ERROR(shared_.output.Write(rank, TensorOf(task, rank).offset + at, bytes));
    shared_.Count(bytes.size());
    return OkStatus();
  }

  Status Vector(const Task& task) {
    const TensorInfo& info = task.info;
    if (info.storage != Storage::kPlain) {
      return ModelError("%s: tensor %s is quantized (%s), but a vector is kept in BF16, F16 or F32",
                        info.data.file->path(), task.name, info.format.Name());
    }
    const uint64_t element = SizeOf(info.format.plain_type());
    rows_.resize(static_cast<uint64_t>(info.shape[0]) * element);
    LOCKSTEP_RETURN_IF_ERROR(reader_.ReadVector(info, task.name, {0, info.shape[0]}, rows_.data()));
    for (size_t rank = 0; rank < digests_.size(); ++rank) {
      const Range range = TensorOf(task, rank).slice.range;
      const auto begin = static_cast<uint64_t>(range.begin) * element;
      LOCKSTEP_RETURN_IF_ERROR(Put(task, rank, 0,
                                   std::span<const std::byte>(rows_).subspan(
                                       begin, static_cast<uint64_t>(range.size()) * element)));
    }
    return OkStatus();
  }

  // The columns that are read: of rows of which one rank holds a part, that part, where others cost
  // more than they bring. What is converted is seen in whole rows (ADR 9).
  Range ColumnsOf(const Task& task) const {
    const int64_t width = task.info.shape[1];
    const TensorSlice& slice = TensorOf(task, 0).slice;
    const bool part = digests_.size() == 1 && slice.kind == SliceKind::kColumns &&
                      task.info.storage != Storage::kConverted &&
                      task.info.data.file->reads_strided();
    return part ? WholeColumnUnits(task.info.format, slice.range, width) : Range{0, width};
  }

  // The rows that any rank holds something of.
  Range RowsOf(const Task& task) const {
    Range rows{task.info.shape[0], 0};
    for (size_t rank = 0; rank < digests_.size(); ++rank) {
      const TensorSlice& slice = TensorOf(task, rank).slice;
      if (slice.range.empty()) continue;
      const bool whole = slice.kind == SliceKind::kColumns;
      rows.begin = whole ? 0 : std::min(rows.begin, slice.range.begin);
      rows.end = whole ? task.info.shape[0] : std::max(rows.end, slice.range.end);
    }
    return rows;
  }

  Status Matrix(const Task& task) {
    const TensorInfo& info = task.info;
    const Range columns = ColumnsOf(task);
    const uint64_t row_bytes = LayoutOf(info.format, columns.size(), 0).row_bytes;
    const auto step = static_cast<int64_t>(
        std::max<uint64_t>(1, shared_.options.chunk_bytes / std::max<uint64_t>(1, row_bytes)));
    const Range rows = RowsOf(task);
    for (int64_t begin = rows.begin; begin < rows.end; begin += step) {
      if (shared_.Stopped()) return InterruptedError();
      const Range chunk{begin, std::min(rows.end, begin + step)};
      rows_.resize(static_cast<uint64_t>(chunk.size()) * row_bytes);
      LOCKSTEP_RETURN_IF_ERROR(reader_.ReadPart(info, task.name, {chunk, columns}, rows_.data()));
      for (size_t rank = 0; rank < digests_.size(); ++rank)
        LOCKSTEP_RETURN_IF_ERROR(WriteChunk(task, chunk, columns, rank));
    }
    return OkStatus();
  }

  // `columns` are those that were read, of the rows of `chunk`.
  Status WriteChunk(const Task& task, Range chunk, Range columns, size_t rank) {
    const ShardTensor& tensor = TensorOf(task, rank);
    const uint64_t row_bytes = LayoutOf(task.info.format, columns.size(), 0).row_bytes;
    const Range range = tensor.slice.range;
    if (range.empty()) return OkStatus();
    if (tensor.slice.kind == SliceKind::kRows) {
      const Range mine{std::max(chunk.begin, range.begin), std::min(chunk.end, range.end)};
      if (mine.empty()) return OkStatus();
      const auto first = static_cast<uint64_t>(mine.begin - chunk.begin) * row_bytes;
      const auto bytes = static_cast<uint64_t>(mine.size()) * row_bytes;
      return Put(task, rank, static_cast<uint64_t>(mine.begin - range.begin) * row_bytes,
                 std::span<const std::byte>(rows_).subspan(first, bytes));
    }
    const uint64_t cut_bytes = ShardRowBytes(tensor);
    cut_.resize(static_cast<uint64_t>(chunk.size()) * cut_bytes);
    for (int64_t row = 0; row < chunk.size(); ++row) {
      CutRow(task.info.format, rows_.data() + static_cast<uint64_t>(row) * row_bytes,
             columns.size(), 0, range.begin - columns.begin, range.end - columns.begin,
             cut_.data() + static_cast<uint64_t>(row) * cut_bytes);
    }
    return Put(task, rank, static_cast<uint64_t>(chunk.begin) * cut_bytes, cut_);
  }

  Shared& shared_;
  StoredRowReader reader_;
  std::vector<DigestStream> digests_;  // of the task's slices, by rank
  std::vector<std::byte> rows_, cut_;  // a chunk, and what a rank holds of it
};

Status WriteTasks(const Plan& plan, const ShardOptions& options, ShardOutput& output) {
  Shared shared{plan, options, output};
  for (size_t task = 0; task < plan.tasks.size(); ++task) {
    for (size_t rank = 0; rank < plan.headers.size() && !output.IsDone(task); ++rank)
      shared.total += plan.headers[rank].tensors[plan.tasks[task].places[rank]].bytes;
  }
  {
    std::vector<std::jthread> threads;
    for (int i = 0; i < options.threads; ++i)
      threads.emplace_back([&shared] { Worker(shared).Run(); });
  }
  if (shared.status.ok()) return OkStatus();
  (void)output.Sync();  // what is done need not be done again
  return shared.status;
}

}  // namespace

StatusOr<ShardResult> WriteShards(const Checkpoint& source, const ShardOptions& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(Plan plan, MakePlan(source, options));
  if (options.only_rank >= 0) KeepRank(&plan, static_cast<size_t>(options.only_rank));
  std::vector<std::vector<size_t>> places;
  for (const Task& task : plan.tasks) places.push_back(task.places);
  ShardResult result;
  result.file_bytes = plan.sizes;
  result.settings = plan.headers[0].settings;
  result.source = plan.headers[0].source;
  result.formats = plan.formats;
  result.tensors = static_cast<int64_t>(plan.tasks.size());
  ShardOutput output(options.directory, &plan.headers, plan.sizes, std::move(places),
                     {options.journal_bytes, options.journal_ms});
  LOCKSTEP_RETURN_IF_ERROR(output.Open());
  for (size_t task = 0; task < plan.tasks.size(); ++task)
    result.tensors_kept += output.complete() || output.IsDone(task) ? 1 : 0;
  if (output.complete()) return result;
  LOCKSTEP_RETURN_IF_ERROR(WriteTasks(plan, options, output));
  LOCKSTEP_RETURN_IF_ERROR(output.Finish());
  return result;
}

}  // namespace lockstep
