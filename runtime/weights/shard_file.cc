#include "runtime/weights/shard_file.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>

#include "nlohmann/json.hpp"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"

namespace lockstep {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr char kMagic[] = "LOCKSHRD";
constexpr uint64_t kVersion = 2;  // 1 held the reciprocals of NVFP4 scales that divide
constexpr uint64_t kMostHeaderBytes = uint64_t{256} << 20;
constexpr int64_t kMostWeights = int64_t{1} << 48;
constexpr size_t kMostRanks = 1024;
constexpr char kAgain[] = "the file is damaged: copy it again, or run lockstep shard again";
constexpr const char* kSliceNames[] = {"rows", "columns", "elements"};

std::string Hex(uint64_t value) { return absl::StrFormat("%016x", value); }

std::string ScalesOf(const WeightFormat& format) {
  return format.encoding == Encoding::kMlx ? std::string(NameOf(format.scale_type)) : std::string();
}

// Every format that a tensor of a checkpoint can have.
const std::vector<WeightFormat>& KnownFormats() {
  static const std::vector<WeightFormat> formats = [] {
    std::vector<WeightFormat> all = {WeightFormat::Fp8(kWholeRow), WeightFormat::Fp8(4)};
    for (int i = 0; i < static_cast<int>(Encoding::kMlx); ++i) {
      const auto encoding = static_cast<Encoding>(i);
      if (encoding != Encoding::kFp8) all.push_back(WeightFormat::Of(encoding));
    }
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
      for (const int group : {32, 64, 128}) {
        for (const DType type : {DType::kF32, DType::kF16, DType::kBF16})
          all.push_back(WeightFormat::Mlx(bits, group, type));
      }
    }
    return all;
  }();
  return formats;
}

uint64_t AlignUp(uint64_t value) {
  return (value + kShardAlignment - 1) / kShardAlignment * kShardAlignment;
}

std::string HeaderText(const ShardHeader& header, bool digests) {
  ordered_json root;
  root["source"] = Hex(header.source);
  root["settings"] = Hex(digests ? header.settings : 0);
  root["rank"] = header.rank;
  root["shares"] = header.shares;
  root["config"] = header.config;
  ordered_json tensors = ordered_json::array();
  for (const ShardTensor& tensor : header.tensors) {
    tensors.push_back({{"name", tensor.name},
                       {"shape", tensor.shape},
                       {"slice", kSliceNames[static_cast<int>(tensor.slice.kind)]},
                       {"begin", tensor.slice.range.begin},
                       {"end", tensor.slice.range.end},
                       {"format", tensor.format.Name()},
                       {"scales", ScalesOf(tensor.format)},
                       {"offset", tensor.offset},
                       {"bytes", tensor.bytes},
                       {"checksum", Hex(digests ? tensor.checksum : 0)}});
  }
  root["tensors"] = std::move(tensors);
  return root.dump(-1, ' ', false, json::error_handler_t::replace);
}

// Room for the header: offsets of more digits than those that are not yet known.
uint64_t DataBegin(const ShardHeader& header) {
  constexpr uint64_t kDigits = 40;  // of an offset and of a length
  return AlignUp(kShardPreambleBytes + HeaderText(header, false).size() +
                 kDigits * header.tensors.size());
}

// Reads values out of one object, each of which must be there and of its kind.
class Reader {
 public:
  Reader(const json& object, std::string where) : object_(object), where_(std::move(where)) {}

  Status Text(const char* key, std::string* value) const {
    const auto found = object_.find(key);
    if (found == object_.end() || !found->is_string()) return Bad(key, "a text");
    *value = found->get<std::string>();
    return OkStatus();
  }
  Status Hexadecimal(const char* key, uint64_t* value) const {
    std::string text;
    LOCKSTEP_RETURN_IF_ERROR(Text(key, &text));
    const bool good =
        text.size() == 16 && text.find_first_not_of("0123456789abcdef") == std::string::npos;
    if (!good) return Bad(key, "16 hexadecimal digits");
    *value = std::stoull(text, nullptr, 16);
    return OkStatus();
  }
  Status Integer(const char* key, int64_t highest, int64_t* value) const {
    const auto found = object_.find(key);
    if (found == object_.end()) return Bad(key, "a whole number");
    return Whole(*found, key, highest, value);
  }
  Status Whole(const json& number, const char* key, int64_t highest, int64_t* value) const {
    if (!number.is_number_unsigned() || number.get<uint64_t>() > static_cast<uint64_t>(highest))
      return Bad(key, "a whole number in its bounds");
    *value = number.get<int64_t>();
    return OkStatus();
  }
  StatusOr<const json*> Array(const char* key) const {
    const auto found = object_.find(key);
    if (found == object_.end() || !found->is_array()) return Bad(key, "an array");
    return &*found;
  }
  Status Bad(const char* key, const char* what) const {
    return ModelError("%s: %s is not %s; %s", where_, key, what, kAgain);
  }

 private:
  const json& object_;
  std::string where_;
};

Status ParseShape(const Reader& reader, std::vector<int64_t>* shape) {
  LOCKSTEP_ASSIGN_OR_RETURN(const json* sizes, reader.Array("shape"));
  if (sizes->empty() || sizes->size() > 2) return reader.Bad("shape", "one or two sizes");
  int64_t weights = 1;
  for (const json& size : *sizes) {
    int64_t value = 0;
    LOCKSTEP_RETURN_IF_ERROR(reader.Whole(size, "shape", kMostWeights - 1, &value));
    if (__builtin_mul_overflow(weights, std::max<int64_t>(value, 1), &weights) ||
        weights >= kMostWeights) {
      return reader.Bad("shape", "small enough for a tensor");
    }
    shape->push_back(value);
  }
  return OkStatus();
}

// The slice, its format, and that they fit the shape.
Status ParseSlice(const Reader& reader, ShardTensor* tensor) {
  std::string kind, format, scales;
  LOCKSTEP_RETURN_IF_ERROR(reader.Text("slice", &kind));
  const auto* const found = std::find(std::begin(kSliceNames), std::end(kSliceNames), kind);
  if (found == std::end(kSliceNames)) return reader.Bad("slice", "rows, columns or elements");
  TensorSlice& slice = tensor->slice;
  slice.kind = static_cast<SliceKind>(found - std::begin(kSliceNames));
  if ((slice.kind == SliceKind::kElements) != (tensor->shape.size() == 1))
    return reader.Bad("slice", "one for this shape");
  const int64_t limit = slice.kind == SliceKind::kColumns ? tensor->shape[1] : tensor->shape[0];
  LOCKSTEP_RETURN_IF_ERROR(reader.Integer("end", limit, &slice.range.end));
  LOCKSTEP_RETURN_IF_ERROR(reader.Integer("begin", slice.range.end, &slice.range.begin));
  LOCKSTEP_RETURN_IF_ERROR(reader.Text("format", &format));
  LOCKSTEP_RETURN_IF_ERROR(reader.Text("scales", &scales));
  const auto known = std::find_if(
      KnownFormats().begin(), KnownFormats().end(),
      [&](const WeightFormat& f) { return f.Name() == format && ScalesOf(f) == scales; });
  if (known == KnownFormats().end()) return reader.Bad("format", "one that this build reads");
  tensor->format = *known;
  if (slice.kind == SliceKind::kElements && !known->plain())
    return reader.Bad("format", "plain numbers, as a vector's must be");
  const int64_t unit = known->cut_weights();
  const bool fits =
      slice.kind != SliceKind::kColumns || slice.range.empty() ||
      (slice.range.begin % unit == 0 && (slice.range.end % unit == 0 || slice.range.end == limit));
  return fits ? OkStatus() : reader.Bad("begin", "a place where this format can be cut");
}

StatusOr<ShardTensor> ParseTensor(const json& entry, uint64_t data_begin, uint64_t file_bytes,
                                  const std::string& name) {
  if (!entry.is_object()) return ModelError("%s: a tensor is no object; %s", name, kAgain);
  ShardTensor tensor;
  LOCKSTEP_RETURN_IF_ERROR(Reader(entry, name + ": a tensor").Text("name", &tensor.name));
  const Reader reader(entry, name + ": tensor " + tensor.name);
  LOCKSTEP_RETURN_IF_ERROR(ParseShape(reader, &tensor.shape));
  LOCKSTEP_RETURN_IF_ERROR(ParseSlice(reader, &tensor));
  int64_t offset = 0, bytes = 0;
  LOCKSTEP_RETURN_IF_ERROR(reader.Integer("offset", INT64_MAX, &offset));
  LOCKSTEP_RETURN_IF_ERROR(reader.Integer("bytes", INT64_MAX, &bytes));
  LOCKSTEP_RETURN_IF_ERROR(reader.Hexadecimal("checksum", &tensor.checksum));
  tensor.offset = static_cast<uint64_t>(offset);
  tensor.bytes = static_cast<uint64_t>(bytes);
  uint64_t expected = 0;
  if (__builtin_mul_overflow(ShardRowBytes(tensor), static_cast<uint64_t>(ShardRows(tensor)),
                             &expected) ||
      tensor.bytes != expected) {
    return reader.Bad("bytes", "what shape, slice and format need");
  }
  if (tensor.offset % kShardAlignment != 0 || tensor.offset < data_begin)
    return reader.Bad("offset", "an aligned place behind the header");
  if (tensor.offset > file_bytes || tensor.bytes > file_bytes - tensor.offset) {
    return ModelError(
        "%s: tensor %s ends at byte %d, but the file has %d: it was cut; copy it again, or run "
        "lockstep shard again",
        name, tensor.name, tensor.offset + tensor.bytes, file_bytes);
  }
  return tensor;
}

Status CheckApart(const ShardHeader& header, const std::string& name) {
  std::vector<const ShardTensor*> order;
  std::set<std::string_view> names;
  for (const ShardTensor& tensor : header.tensors) {
    if (!names.insert(tensor.name).second)
      return ModelError("%s: tensor %s stands twice; %s", name, tensor.name, kAgain);
    if (tensor.bytes > 0) order.push_back(&tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const ShardTensor* a, const ShardTensor* b) { return a->offset < b->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1]->offset + order[i - 1]->bytes > order[i]->offset) {
      return ModelError("%s: tensors %s and %s overlap; %s", name, order[i - 1]->name,
                        order[i]->name, kAgain);
    }
  }
  return OkStatus();
}

Status ParseShares(const Reader& reader, ShardHeader* header) {
  LOCKSTEP_ASSIGN_OR_RETURN(const json* shares, reader.Array("shares"));
  if (shares->empty() || shares->size() > kMostRanks)
    return reader.Bad("shares", "one number per rank");
  for (const json& share : *shares) {
    if (!share.is_number()) return reader.Bad("shares", "one number per rank");
    header->shares.push_back(share.get<double>());
  }
  if (!ValidateShares(header->shares, header->ranks()).ok())
    return reader.Bad("shares", "numbers >= 0 with one above 0");
  return OkStatus();
}

}  // namespace

StatusOr<std::vector<std::string>> ShardFilesIn(const std::string& directory) {
  LOCKSTEP_ASSIGN_OR_RETURN(std::vector<std::string> names, NamesIn(directory, ErrorKind::kModel));
  std::erase_if(names, [](const std::string& name) { return !name.ends_with(kShardSuffix); });
  std::sort(names.begin(), names.end());
  return names;
}

StatusOr<bool> HoldsShards(const std::string& directory) {
  if (!IsDirectory(directory)) return false;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> names, ShardFilesIn(directory));
  return !names.empty();
}

std::string ShardName(int rank, int ranks) {
  return absl::StrFormat("rank-%d-of-%d%s", rank, ranks, kShardSuffix);
}

uint64_t ShardRowBytes(const ShardTensor& tensor) {
  const TensorSlice& slice = tensor.slice;
  if (slice.range.empty()) return 0;
  if (slice.kind == SliceKind::kRows) return LayoutOf(tensor.format, tensor.shape[1], 0).row_bytes;
  const int64_t phase =
      slice.kind == SliceKind::kColumns ? PhaseAt(tensor.format, 0, slice.range.begin) : 0;
  return LayoutOf(tensor.format, slice.range.size(), phase).row_bytes;
}

int64_t ShardRows(const ShardTensor& tensor) {
  if (tensor.slice.range.empty()) return 0;
  return tensor.slice.kind == SliceKind::kRows      ? tensor.slice.range.size()
         : tensor.slice.kind == SliceKind::kColumns ? tensor.shape[0]
                                                    : 1;
}

uint64_t PlaceShardTensors(ShardHeader* header) {
  for (ShardTensor& tensor : header->tensors) {
    tensor.offset = 0;
    tensor.bytes = ShardRowBytes(tensor) * static_cast<uint64_t>(ShardRows(tensor));
  }
  const uint64_t begin = DataBegin(*header);
  uint64_t end = begin;
  for (ShardTensor& tensor : header->tensors) {
    tensor.offset = AlignUp(end);
    end = tensor.offset + tensor.bytes;
  }
  return end;
}

std::string ShardBeginning(const ShardHeader& header) {
  std::string text = HeaderText(header, true);
  // Spaces up to the first slice: the length is the same whatever the digests are.
  const uint64_t begin = header.tensors.empty() ? AlignUp(kShardPreambleBytes + text.size())
                                                : header.tensors.front().offset;
  text.resize(begin - kShardPreambleBytes, ' ');
  std::string beginning(kShardPreambleBytes, '\0');
  const uint64_t numbers[] = {kVersion, text.size(), DigestOf(text.data(), text.size())};
  std::memcpy(beginning.data(), kMagic, 8);
  std::memcpy(beginning.data() + 8, numbers, sizeof numbers);
  return beginning + text;
}

uint64_t ShardSettings(const ShardHeader& header, uint64_t seed) {
  const std::string text = HeaderText(header, false);
  return DigestOf(text.data(), text.size(), seed);
}

StatusOr<uint64_t> ShardHeaderBytes(std::string_view preamble, uint64_t file_bytes,
                                    const std::string& name) {
  if (preamble.size() < kShardPreambleBytes || std::memcmp(preamble.data(), kMagic, 8) != 0) {
    return ModelError(
        "%s: does not begin like a file of `lockstep shard`; copy it again, or run lockstep shard "
        "again",
        name);
  }
  uint64_t numbers[2];
  std::memcpy(numbers, preamble.data() + 8, sizeof numbers);
  if (numbers[0] != kVersion) {
    return ModelError("%s: has version %d, this build reads %d; run lockstep shard again", name,
                      numbers[0], kVersion);
  }
  if (numbers[1] > kMostHeaderBytes || numbers[1] > file_bytes - kShardPreambleBytes) {
    return ModelError("%s: claims a header of %d bytes in a file of %d; %s", name, numbers[1],
                      file_bytes, kAgain);
  }
  return numbers[1];
}

StatusOr<ShardHeader> ParseShardHeader(std::string_view text, uint64_t file_bytes,
                                       const std::string& name) {
  // Nothing in a header is nested deeper than a tensor's shape.
  const auto flat = [](int depth, json::parse_event_t, json&) { return depth <= 4; };
  const json root = json::parse(text.begin(), text.end(), flat, false);
  if (!root.is_object()) return ModelError("%s: the header is no JSON object; %s", name, kAgain);
  ShardHeader header;
  const Reader reader(root, name);
  LOCKSTEP_RETURN_IF_ERROR(reader.Hexadecimal("source", &header.source));
  LOCKSTEP_RETURN_IF_ERROR(reader.Hexadecimal("settings", &header.settings));
  LOCKSTEP_RETURN_IF_ERROR(reader.Text("config", &header.config));
  LOCKSTEP_RETURN_IF_ERROR(ParseShares(reader, &header));
  int64_t rank = 0;
  LOCKSTEP_RETURN_IF_ERROR(reader.Integer("rank", header.ranks() - 1, &rank));
  header.rank = static_cast<int>(rank);
  LOCKSTEP_ASSIGN_OR_RETURN(const json* tensors, reader.Array("tensors"));
  for (const json& entry : *tensors) {
    LOCKSTEP_ASSIGN_OR_RETURN(
        ShardTensor tensor,
        ParseTensor(entry, kShardPreambleBytes + text.size(), file_bytes, name));
    header.tensors.push_back(std::move(tensor));
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckApart(header, name));
  return header;
}

StatusOr<ShardHeader> ReadShardHeader(const std::string& path) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto file, RandomAccessFile::Open(path, ErrorKind::kModel));
  std::string preamble(std::min(kShardPreambleBytes, file->size_bytes()), '\0');
  LOCKSTEP_RETURN_IF_ERROR(file->Read(0, std::as_writable_bytes(std::span(preamble))));
  LOCKSTEP_ASSIGN_OR_RETURN(const uint64_t bytes,
                            ShardHeaderBytes(preamble, file->size_bytes(), path));
  std::string text(bytes, '\0');
  LOCKSTEP_RETURN_IF_ERROR(
      file->Read(kShardPreambleBytes, std::as_writable_bytes(std::span(text))));
  uint64_t digest = 0;
  std::memcpy(&digest, preamble.data() + 24, sizeof digest);
  if (digest != DigestOf(text.data(), text.size()))
    return ModelError("%s: the header does not match its checksum; %s", path, kAgain);
  return ParseShardHeader(text, file->size_bytes(), path);
}

}  // namespace lockstep
