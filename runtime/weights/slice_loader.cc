#include "runtime/weights/slice_loader.h"

#include <cstring>

namespace lockstep {
namespace {

StatusOr<DType> TypeOf(const TensorInfo& info, const std::string& name) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (info.type == NameOf(type)) return type;
  }
  return ModelError("%s: tensor %s is %s; this build reads BF16, F16 and F32", info.file->path(),
                    name, info.type);
}

// Any element whose exponent bits are all ones is infinite or not a number.
template <typename Bits>
bool AllFinite(const std::byte* data, int64_t count, Bits exponent) {
  Bits bad = 0;
  for (int64_t i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, data + i * sizeof(Bits), sizeof(Bits));
    bad |= (bits & exponent) == exponent;
  }
  return bad == 0;
}

bool AllFinite(DType type, const std::byte* data, int64_t count) {
  switch (type) {
    case DType::kF32:
      return AllFinite<uint32_t>(data, count, 0x7f800000u);
    case DType::kF16:
      return AllFinite<uint16_t>(data, count, 0x7c00u);
    case DType::kBF16:
      return AllFinite<uint16_t>(data, count, 0x7f80u);
  }
  return false;
}

void WidenTo(float* to, DType type, const std::byte* from, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (type == DType::kF32) {
      std::memcpy(&to[i], from + i * 4, 4);
      continue;
    }
    uint16_t bits;
    std::memcpy(&bits, from + i * 2, 2);
    to[i] = type == DType::kBF16 ? Bf16ToFloat(bits) : HalfToFloat(bits);
  }
}

}  // namespace

SliceLoader::SliceLoader(const Checkpoint& checkpoint, Group& group, std::vector<double> shares,
                         std::function<void(uint64_t)> progress)
    : checkpoint_(checkpoint),
      group_(group),
      shares_(std::move(shares)),
      progress_(std::move(progress)) {
  sends_.resize(static_cast<size_t>(group.size()));
}

StatusOr<const TensorInfo*> SliceLoader::FindShaped(const std::string& name,
                                                    const std::vector<int64_t>& shape) const {
  const TensorInfo* info = checkpoint_.Find(name);
  if (info == nullptr) {
    return ModelError(
        "%s: tensor %s is missing; the checkpoint is incomplete or not of this architecture",
        checkpoint_.directory(), name);
  }
  used_.insert(name);
  if (info->shape != shape) {
    TensorInfo expected;
    expected.shape = shape;
    return ModelError("%s: tensor %s has shape %s, but config.json means %s", info->file->path(),
                      name, info->ShapeText(), expected.ShapeText());
  }
  return info;
}

std::vector<std::string> SliceLoader::Unused() const {
  std::vector<std::string> unused;
  for (const auto& [name, info] : checkpoint_.tensors()) {
    if (!used_.contains(name)) unused.push_back(name);
  }
  return unused;
}

StatusOr<DType> SliceLoader::CommonType(const std::vector<std::string>& names) const {
  std::optional<DType> common;
  for (const std::string& name : names) {
    const TensorInfo* info = checkpoint_.Find(name);
    if (info == nullptr) {
      return ModelError(
          "%s: tensor %s is missing; the checkpoint is incomplete or not of this architecture",
          checkpoint_.directory(), name);
    }
    LOCKSTEP_ASSIGN_OR_RETURN(const DType type, TypeOf(*info, name));
    if (common.has_value() && *common != type) return DType::kF32;
    common = type;
  }
  return common.value_or(DType::kF32);
}

Status SliceLoader::ReadElements(const TensorInfo& info, const std::string& name, int64_t begin,
                                 int64_t count, DType type, std::byte* to) {
  LOCKSTEP_ASSIGN_OR_RETURN(const DType stored, TypeOf(info, name));
  if (stored != type && type != DType::kF32) {
    return InternalError("tensor %s: asked for %s as %s", name, info.type,
                         std::string(NameOf(type)));
  }
  const auto bytes = static_cast<uint64_t>(count) * SizeOf(stored);
  std::byte* target = to;
  if (stored != type) {
    raw_.resize(bytes);
    target = raw_.data();
  }
  LOCKSTEP_RETURN_IF_ERROR(info.file->Read(
      info.offset + static_cast<uint64_t>(begin) * SizeOf(stored), std::span(target, bytes)));
  if (!AllFinite(stored, target, count)) {
    return ModelError(
        "%s: tensor %s holds values that are not finite (NaN or infinity); the checkpoint is "
        "broken",
        info.file->path(), name);
  }
  if (stored != type) WidenTo(reinterpret_cast<float*>(to), stored, target, count);
  bytes_read_ += bytes;
  if (progress_) progress_(bytes_read_);
  return OkStatus();
}

Status SliceLoader::ReadRows(const std::string& name, int64_t height, Range rows, HostMatrix* to,
                             int64_t index, int64_t at) {
  LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* info, FindShaped(name, {height, to->inputs}));
  if (rows.empty()) return OkStatus();
  return ReadElements(*info, name, rows.begin * to->inputs, rows.size() * to->inputs, to->type,
                      to->row(index, at));
}

Status SliceLoader::ReadColumns(const std::string& name, int64_t width,
                                const std::vector<Range>& columns, HostMatrix* to, int64_t index) {
  const int64_t height = to->outputs;
  LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* info, FindShaped(name, {height, width}));
  const size_t element = SizeOf(to->type);
  const std::vector<Range> rows = CutByShares(height, shares_);
  const Range mine = rows[static_cast<size_t>(rank())];
  rows_.resize(static_cast<size_t>(mine.size() * width) * element);
  if (!mine.empty()) {
    LOCKSTEP_RETURN_IF_ERROR(
        ReadElements(*info, name, mine.begin * width, mine.size() * width, to->type, rows_.data()));
  }
  std::vector<std::span<const std::byte>> sends;
  std::vector<std::span<std::byte>> receives;
  for (size_t peer = 0; peer < columns.size(); ++peer) {
    const size_t segment = static_cast<size_t>(columns[peer].size()) * element;
    sends_[peer].resize(segment * static_cast<size_t>(mine.size()));
    for (int64_t row = 0; row < mine.size() && segment > 0; ++row) {
      std::memcpy(sends_[peer].data() + static_cast<size_t>(row) * segment,
                  rows_.data() + static_cast<size_t>(row * width + columns[peer].begin) * element,
                  segment);
    }
    sends.emplace_back(sends_[peer]);
    receives.emplace_back(to->row(index, rows[peer].begin),
                          static_cast<size_t>(rows[peer].size()) * to->row_bytes());
  }
  // A disk may be slow on one rank only: the others wait as long as it is alive.
  return AllToAll(group_, sends, receives, Patience::kIdle);
}

StatusOr<std::vector<float>> SliceLoader::ReadVector(const std::string& name, int64_t length,
                                                     Range elements) {
  LOCKSTEP_ASSIGN_OR_RETURN(const TensorInfo* info, FindShaped(name, {length}));
  std::vector<float> values(static_cast<size_t>(elements.empty() ? 0 : elements.size()));
  if (values.empty()) return values;
  LOCKSTEP_RETURN_IF_ERROR(ReadElements(*info, name, elements.begin, elements.size(), DType::kF32,
                                        reinterpret_cast<std::byte*>(values.data())));
  return values;
}

}  // namespace lockstep
