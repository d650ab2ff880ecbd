#include "runtime/model/weight_reader.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/os.h"

namespace lockstep {
namespace {

// A matrix without memory: what HostMatrix::Allocate will be asked for.
HostMatrix Shape(const WeightFormat& format, size_t count, int64_t outputs, int64_t inputs) {
  HostMatrix shape;
  shape.format = format;
  shape.count = static_cast<int64_t>(count);
  shape.outputs = outputs;
  shape.inputs = inputs;
  return shape;
}

}  // namespace

std::vector<std::string> WeightReader::Unused() const {
  std::vector<std::string> unused;
  for (const auto& [name, info] : checkpoint_.tensors()) {
    if (!used_.contains(name)) unused.push_back(name);
  }
  return unused;
}

StatusOr<HostMatrix> WeightReader::AllocateLike(const HostMatrix& shape, const char* what) {
  LOCKSTEP_ASSIGN_OR_RETURN(HostMatrix matrix,
                            HostMatrix::Allocate(shape.format, shape.count, shape.outputs,
                                                 shape.inputs, what, shape.phase));
  if (os::MemoryNodes() > 1) {
    matrix.TouchFirst(*pool_);
  } else {
    toucher_.Begin({matrix.data.data(), matrix.data.bytes()});
  }
  return matrix;
}

Status WeightReader::Count(const HostMatrix& shape, const char* what, double read_per_token) {
  LOCKSTEP_ASSIGN_OR_RETURN(const uint64_t bytes, HostMatrix::BytesOf(shape, what));
  bytes_ += backend_ != nullptr ? backend_->PackedBytes(shape) : bytes;
  bytes_per_token_ += static_cast<double>(bytes) * read_per_token;
  if (backend_ != nullptr) work_bytes_ = std::max(work_bytes_, backend_->WorkBytes(shape));
  if (copies_) copied_bytes_ = std::max(copied_bytes_, bytes);
  return OkStatus();
}

void WeightReader::CountVector(Range elements) {
  const auto bytes = static_cast<uint64_t>(elements.size()) * sizeof(float);
  bytes_ += bytes;
  bytes_per_token_ += static_cast<double>(bytes);
}

void WeightReader::CountStaging(const std::string& name, const WeightFormat& format,
                                uint64_t bytes) {
  const TensorInfo& info = *checkpoint_.Find(name);
  if (info.slice.has_value()) bytes = info.format == format ? 0 : info.data.bytes;
  staging_bytes_ = std::max(staging_bytes_, kChunkBytes + bytes);
}

// What is allocated is what was planned.
StatusOr<PackedPtr> WeightReader::PackAsPlanned(HostMatrix matrix) const {
  const uint64_t planned = backend_->PackedBytes(matrix);
  LOCKSTEP_ASSIGN_OR_RETURN(PackedPtr packed, backend_->Pack(std::move(matrix)));
  LOCKSTEP_CHECK(packed->bytes() == planned);
  return packed;
}

StatusOr<PackedPtr> WeightReader::RowMatrix(const std::vector<const RowPart*>& parts,
                                            const HostMatrix& shape, const char* what) {
  LOCKSTEP_ASSIGN_OR_RETURN(HostMatrix matrix, AllocateLike(shape, what));
  for (int64_t index = 0; index < shape.count; ++index) {
    int64_t at = 0;
    for (const RowPart* part : parts) {
      LOCKSTEP_RETURN_IF_ERROR(loader_->ReadRows(part->names[static_cast<size_t>(index)],
                                                 part->height, part->rows, &matrix, index, at));
      at += part->rows.size();
    }
    backend_->PackNext(&matrix);
  }
  return PackAsPlanned(std::move(matrix));
}

StatusOr<FusedMatrix> WeightReader::Rows(const std::vector<RowPart>& parts, int64_t inputs,
                                         const char* what, double read_per_token) {
  FusedMatrix fused;
  std::vector<WeightFormat> formats;
  for (const RowPart& part : parts) {
    for (const std::string& name : part.names)
      LOCKSTEP_RETURN_IF_ERROR(FindShaped(checkpoint_, name, {part.height, inputs}).status());
    LOCKSTEP_ASSIGN_OR_RETURN(const WeightFormat format, CommonFormat(checkpoint_, part.names));
    formats.push_back(format);
  }
  for (size_t begin = 0, end = 0; begin < parts.size(); begin = end) {
    std::vector<const RowPart*> run;
    int64_t outputs = 0;
    for (; end < parts.size() && formats[end] == formats[begin]; ++end) {
      run.push_back(&parts[end]);
      outputs += parts[end].rows.size();
    }
    for (size_t index = 0; index < run.front()->names.size(); ++index)
      for (const RowPart* part : run) Record(part->names[index], SliceKind::kRows, part->rows);
    for (const RowPart* part : run)
      for (const std::string& name : part->names) CountStaging(name, formats[begin], 0);
    const HostMatrix shape = Shape(formats[begin], parts[begin].names.size(), outputs, inputs);
    LOCKSTEP_RETURN_IF_ERROR(Count(shape, what, read_per_token));
    PackedPtr packed;
    if (!counting()) {
      LOCKSTEP_ASSIGN_OR_RETURN(packed, RowMatrix(run, shape, what));
    }
    fused.parts.push_back(std::move(packed));
  }
  return fused;
}

StatusOr<PackedPtr> WeightReader::Rows(const RowPart& part, int64_t inputs, const char* what,
                                       double read_per_token) {
  LOCKSTEP_ASSIGN_OR_RETURN(FusedMatrix fused,
                            Rows(std::vector<RowPart>{part}, inputs, what, read_per_token));
  return std::move(fused.parts.front());
}

StatusOr<PackedPtr> WeightReader::Columns(const ColumnPart& part, const char* what,
                                          double read_per_token) {
  for (const std::string& name : part.names)
    LOCKSTEP_RETURN_IF_ERROR(FindShaped(checkpoint_, name, {part.height, part.width}).status());
  LOCKSTEP_ASSIGN_OR_RETURN(WeightFormat format, CommonFormat(checkpoint_, part.names));
  if (!CutsFit(format, part.width, part.columns)) format = DType::kF32;
  const Range mine = part.columns[static_cast<size_t>(rank_)];
  for (const std::string& name : part.names) Record(name, SliceKind::kColumns, mine);
  HostMatrix shape = Shape(format, part.names.size(), part.height, mine.size());
  if (!mine.empty()) shape.phase = PhaseAt(format, 0, mine.begin);
  LOCKSTEP_RETURN_IF_ERROR(Count(shape, what, read_per_token));
  // One tensor's rows of this rank, as read and as cut for all ranks (SliceLoader::ReadColumns).
  const uint64_t each = 2 * static_cast<uint64_t>(shape.outputs) * shape.row_bytes();
  // Alone, a rank reads whole rows to their place.
  const uint64_t staged = part.columns.size() > 1 ? each : 0;
  for (const std::string& name : part.names) CountStaging(name, format, staged);
  if (counting()) return PackedPtr();
  LOCKSTEP_ASSIGN_OR_RETURN(HostMatrix matrix, AllocateLike(shape, what));
  for (int64_t index = 0; index < shape.count; ++index) {
    LOCKSTEP_RETURN_IF_ERROR(loader_->ReadColumns(part.names[static_cast<size_t>(index)],
                                                  part.width, part.columns, &matrix, index));
    backend_->PackNext(&matrix);
  }
  return PackAsPlanned(std::move(matrix));
}

StatusOr<HostMatrix> WeightReader::Allocate(const WeightFormat& format, int64_t count,
                                            int64_t outputs, int64_t inputs, const char* what) {
  HostMatrix shape = Shape(format, static_cast<size_t>(count), outputs, inputs);
  if (counting()) return shape;
  return AllocateLike(shape, what);
}

StatusOr<HostMatrix> WeightReader::HostRows(const RowPart& part, int64_t inputs, const char* what) {
  const std::string& name = part.names.front();
  LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* info,
                            FindShaped(checkpoint_, name, {part.height, inputs}));
  LOCKSTEP_ASSIGN_OR_RETURN(HostMatrix rows,
                            Allocate(info->format, 1, part.rows.size(), inputs, what));
  Record(name, SliceKind::kRows, part.rows);
  LOCKSTEP_ASSIGN_OR_RETURN(
      const uint64_t bytes,
      HostMatrix::BytesOf(Shape(info->format, 1, part.rows.size(), inputs), what));
  staging_bytes_ = std::max(staging_bytes_, kChunkBytes + bytes);
  if (!counting())
    LOCKSTEP_RETURN_IF_ERROR(loader_->ReadRows(name, part.height, part.rows, &rows, 0, 0));
  return rows;
}

StatusOr<PackedPtr> WeightReader::Pack(HostMatrix matrix, const char* what, double read_per_token) {
  LOCKSTEP_RETURN_IF_ERROR(Count(matrix, what, read_per_token));
  if (counting()) return PackedPtr();
  return PackAsPlanned(std::move(matrix));
}

StatusOr<std::vector<float>> WeightReader::Vector(const std::string& name, int64_t length,
                                                  Range elements) {
  CountVector(elements);
  Record(name, SliceKind::kElements, elements);
  if (!counting()) return loader_->ReadVector(name, length, elements);
  LOCKSTEP_RETURN_IF_ERROR(FindShaped(checkpoint_, name, {length}).status());
  return std::vector<float>();
}

}  // namespace lockstep
