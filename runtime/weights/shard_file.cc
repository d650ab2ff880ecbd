#include "runtime/weights/shard_file.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <set>

#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/weights/bounded_json.h"

namespace lockstep {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr char kMagic[] = "LOCKSHRD";
constexpr uint64_t kVersion = 2;  // 1 held the reciprocals of NVFP4 scales that divide
constexpr uint64_t kMostHeaderBytes = uint64_t{256} << 20;
constexpr int64_t kMostWeights = int64_t{1} << 48;
constexpr size_t kMostRanks = 1024;
constexpr size_t kMostFields = 64;  // of an object; fewer have a meaning
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

// Takes a header's values as the parser meets them. Each tensor is checked and forgotten at its
// end, so that no header makes a tree of JSON values that is many times its size.
class HeaderReader final : public nlohmann::json_sax<json> {
 public:
  HeaderReader(uint64_t data_begin, uint64_t file_bytes, const std::string& name)
      : data_begin_(data_begin), file_bytes_(file_bytes), name_(name) {}

  const Status& status() const { return status_; }
  const json& root() const { return root_; }  // its list of tensors is empty
  std::vector<ShardTensor>& tensors() { return tensors_; }

  bool start_object(size_t) override {
    if (depth_ != 0 && !in_tensors()) return NestsTooDeep();
    if (++depth_ == 3) entry_ = json::object();
    return true;
  }
  bool end_object() override {
    if (--depth_ != 2) return true;
    StatusOr<ShardTensor> tensor = ParseTensor(entry_, data_begin_, file_bytes_, name_);
    if (!tensor.ok()) return Fail(tensor.status());
    tensors_.push_back(*std::move(tensor));
    return true;
  }
  bool start_array(size_t) override {
    if (depth_ == 4 || (depth_ == 2 && !list_is_tensors_)) return NestsTooDeep();
    if (depth_ == 1) list_is_tensors_ = key_ == "tensors";
    return Add(json::array()) && ++depth_ > 0;
  }
  bool end_array() override { return --depth_ > 0; }
  bool key(std::string& text) override {
    key_ = text;
    return object().size() < kMostFields ||
           Fail(ModelError("%s: an object of more than %d values; %s", name_, kMostFields, kAgain));
  }
  bool null() override { return Add(nullptr); }
  bool boolean(bool value) override { return Add(value); }
  bool number_integer(int64_t value) override { return Add(value); }
  bool number_unsigned(uint64_t value) override { return Add(value); }
  bool number_float(double value, const std::string&) override { return Add(value); }
  bool string(std::string& value) override { return Add(value); }
  bool binary(json::binary_t& value) override { return Add(value); }
  bool parse_error(size_t, const std::string&, const json::exception&) override {
    return NoObject();
  }

 private:
  bool in_tensors() const { return depth_ == 2 && list_is_tensors_; }
  json& object() { return depth_ < 3 ? root_ : entry_; }

  bool Add(json value) {
    if (depth_ == 0) return NoObject();
    if (in_tensors()) return Fail(ModelError("%s: a tensor is no object; %s", name_, kAgain));
    json& place = object()[key_];
    if (depth_ % 2 == 1) {
      place = std::move(value);
      return true;
    }
    if (place.size() == kMostRanks) {
      return Fail(
          ModelError("%s: %s has more than %d values; %s", name_, key_, kMostRanks, kAgain));
    }
    place.push_back(std::move(value));
    return true;
  }
  bool NoObject() {
    return Fail(ModelError("%s: the header is no JSON object; %s", name_, kAgain));
  }
  bool NestsTooDeep() { return Fail(ModelError("%s: %s nests too deep; %s", name_, key_, kAgain)); }
  bool Fail(Status status) {
    status_ = std::move(status);
    return false;
  }

  const uint64_t data_begin_, file_bytes_;
  const std::string& name_;
  Status status_;
  int depth_ = 0;  // the next value is of: 1 the header, 2 a list, 3 a tensor, 4 its list
  bool list_is_tensors_ = false;  // at depths 2 to 4
  std::string key_;
  json root_ = json::object(), entry_;
  std::vector<ShardTensor> tensors_;
};

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

bool IsShardName(const std::string& name, int* rank, int* ranks) {
  return std::sscanf(name.c_str(), "rank-%d-of-%d.", rank, ranks) == 2 && *rank >= 0 &&
         *rank < *ranks && ShardName(*rank, *ranks) == name;
}

std::vector<int> RankCountsOf(const std::vector<std::string>& names) {
  std::set<int> counts;
  for (const std::string& name : names) {
    int rank = 0, ranks = 0;
    if (IsShardName(name, &rank, &ranks)) counts.insert(ranks);
  }
  return {counts.begin(), counts.end()};
}

std::string RankCountsText(const std::vector<int>& counts) {
  return counts.empty() ? "other" : absl::StrJoin(counts, " and ");
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
  HeaderReader parsed(kShardPreambleBytes + text.size(), file_bytes, name);
  if (!json::sax_parse(text.begin(), text.end(), &parsed)) return parsed.status();
  ShardHeader header;
  const Reader reader(parsed.root(), name);
  LOCKSTEP_RETURN_IF_ERROR(reader.Hexadecimal("source", &header.source));
  LOCKSTEP_RETURN_IF_ERROR(reader.Hexadecimal("settings", &header.settings));
  LOCKSTEP_RETURN_IF_ERROR(reader.Text("config", &header.config));
  if (header.config.size() > kMostConfigBytes) {
    return ModelError("%s: has a config of %d bytes, the most is %d; %s", name,
                      header.config.size(), kMostConfigBytes, kAgain);
  }
  LOCKSTEP_RETURN_IF_ERROR(ParseShares(reader, &header));
  int64_t rank = 0;
  LOCKSTEP_RETURN_IF_ERROR(reader.Integer("rank", header.ranks() - 1, &rank));
  header.rank = static_cast<int>(rank);
  LOCKSTEP_RETURN_IF_ERROR(reader.Array("tensors").status());
  header.tensors = std::move(parsed.tensors());
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
