#include "runtime/weights/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "nlohmann/json.hpp"
#include "runtime/base/file.h"
#include "runtime/weights/bounded_json.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;  // the format's own limit
constexpr size_t kMostDimensions = 8;
constexpr int kMostDepth = 8;
constexpr char kMetadata[] = "__metadata__";  // texts about the file, beside the tensors
constexpr char kWeightMap[] = "weight_map";
constexpr char kRefetch[] = "the file is damaged, fetch it again";

// Bytes of one element, 0 for a type that we do not know.
uint64_t ElementBytes(const std::string& type) {
  static const std::map<std::string, uint64_t> sizes = {
      {"F64", 8},  {"I64", 8},     {"U64", 8},     {"F32", 4},    {"I32", 4}, {"U32", 4},
      {"F16", 2},  {"BF16", 2},    {"I16", 2},     {"U16", 2},    {"I8", 1},  {"U8", 1},
      {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}};
  const auto found = sizes.find(type);
  return found == sizes.end() ? 0 : found->second;
}

// The array that an entry of the header describes, once all of it was read.
Status PlaceArray(uint64_t begin, uint64_t end, uint64_t data_begin, uint64_t file_bytes,
                  const std::string& where, StoredArray* array) {
  uint64_t expected = ElementBytes(array->type);
  const bool known_type = expected != 0;
  for (const int64_t size : array->shape) {
    if (__builtin_mul_overflow(expected, static_cast<uint64_t>(size), &expected))
      return ModelError("%s: the shape overflows; %s", where, kRefetch);
  }
  if (begin > end || end > file_bytes - data_begin) {
    return ModelError(
        "%s: data_offsets [%d, %d] lie outside the file's %d bytes of data; the file was cut or "
        "its header lies, fetch it again",
        where, begin, end, file_bytes - data_begin);
  }
  array->offset = data_begin + begin;
  array->bytes = end - begin;
  if (known_type && array->bytes != expected) {
    return ModelError("%s: %s %s needs %d bytes but data_offsets give %d; %s", where, array->type,
                      ShapeText(array->shape), expected, array->bytes, kRefetch);
  }
  return OkStatus();
}

// Takes a text's values as the parser meets them, so that a hostile one is refused where its lie
// stands, and nothing is kept but what the subclass keeps. (A tree of JSON values takes twenty
// times the text, and nlohmann's callback looks through the whole parent at the end of every
// object.)
class ValueReader : public nlohmann::json_sax<json> {
 public:
  explicit ValueReader(const std::string& name) : name_(name) {}

  const Status& status() const { return status_; }

  bool start_object(size_t) override { return Value(Kind::kObject) && Enter(); }
  bool start_array(size_t) override { return Value(Kind::kArray) && Enter(); }
  bool end_object() override { return --depth_, true; }
  bool end_array() override { return --depth_, true; }
  bool string(std::string&) override { return Value(Kind::kText); }
  bool number_unsigned(uint64_t) override { return Value(Kind::kWhole); }
  bool null() override { return Value(Kind::kOther); }
  bool boolean(bool) override { return Value(Kind::kOther); }
  bool number_integer(int64_t) override { return Value(Kind::kOther); }
  bool number_float(double, const std::string&) override { return Value(Kind::kOther); }
  bool binary(json::binary_t&) override { return Value(Kind::kOther); }
  bool parse_error(size_t, const std::string&, const json::exception&) override {
    return NoObject();
  }

 protected:
  enum class Kind : uint8_t { kObject, kArray, kText, kWhole, kOther };

  // Whether a value of this kind may stand here.
  virtual bool Value(Kind kind) = 0;
  // Fails: the text as a whole is not what it should be.
  virtual bool NoObject() = 0;
  bool Fail(Status status) {
    status_ = std::move(status);
    return false;
  }

  const std::string& name_;
  int depth_ = 0;  // of objects and arrays around the next value: 1 is the text's own

 private:
  bool Enter() {
    if (++depth_ <= kMostDepth) return true;
    return Fail(ModelError("%s: nests deeper than %d levels; %s", name_, kMostDepth, kRefetch));
  }

  Status status_;
};

// Keeps the arrays of a header.
class HeaderReader final : public ValueReader {
 public:
  HeaderReader(uint64_t file_bytes, const std::string& name, SafetensorsHeader* header)
      : ValueReader(name), file_bytes_(file_bytes), header_(*header) {}

  bool end_object() override { return --depth_ != 1 || metadata_ || FinishTensor(); }
  bool key(std::string& text) override {
    if (depth_ == 1) return StartTensor(text);
    return depth_ != 2 || metadata_ || StartField(text);
  }
  bool string(std::string& text) override {
    if (!Value(Kind::kText)) return false;
    if (depth_ == 2 && field_ == kType) tensor_->second.type = text;
    return true;
  }
  bool number_unsigned(uint64_t number) override {
    if (!Value(Kind::kWhole)) return false;
    if (field_ == kOther) return true;
    return field_ == kShape ? AddSize(number) : AddOffset(number);
  }

 private:
  enum Field : uint8_t { kType = 1, kShape = 2, kOffsets = 4, kOther = 0 };

  bool Value(Kind kind) override {
    if (depth_ == 0) return kind == Kind::kObject || NoObject();
    if (metadata_) return true;
    if (depth_ == 1) return kind == Kind::kObject || Incomplete();
    if (field_ == kOther) return true;
    if (depth_ == 2) return kind == (field_ == kType ? Kind::kText : Kind::kArray) || Incomplete();
    if (kind == Kind::kWhole) return true;
    return Fail(ModelError("%s: %s is not a whole number >= 0; %s", Where(),
                           field_ == kShape ? "a dimension" : "data_offsets", kRefetch));
  }
  bool StartTensor(const std::string& tensor) {
    const auto [added, is_new] = header_.tensors.try_emplace(tensor);
    if (!is_new) {
      return Fail(
          ModelError("%s: the header names a tensor twice, %s; %s", name_, tensor, kRefetch));
    }
    if (header_.tensors.size() > kMostTensors)
      return Fail(ModelError("%s: more than %d tensors; %s", name_, kMostTensors, kRefetch));
    tensor_ = &*added;
    metadata_ = tensor == kMetadata;
    given_ = offsets_ = 0;
    field_ = kOther;
    return true;
  }
  bool StartField(const std::string& field) {
    field_ = field == "dtype"          ? kType
             : field == "shape"        ? kShape
             : field == "data_offsets" ? kOffsets
                                       : kOther;
    if ((given_ & field_) != 0)
      return Fail(ModelError("%s: names %s twice; %s", Where(), field, kRefetch));
    given_ |= field_;
    return true;
  }
  bool AddSize(uint64_t size) {
    std::vector<int64_t>& shape = tensor_->second.shape;
    if (shape.size() == kMostDimensions) {
      return Fail(
          ModelError("%s: more than %d dimensions; %s", Where(), kMostDimensions, kRefetch));
    }
    if (size > INT64_MAX / 2)
      return Fail(ModelError("%s: the shape overflows; %s", Where(), kRefetch));
    shape.push_back(static_cast<int64_t>(size));
    return true;
  }
  bool AddOffset(uint64_t offset) {
    if (offsets_ == 2) return Incomplete();
    (offsets_++ == 0 ? begin_ : end_) = offset;
    return true;
  }
  bool FinishTensor() {
    if (given_ != (kType | kShape | kOffsets) || offsets_ != 2) return Incomplete();
    const Status placed =
        PlaceArray(begin_, end_, header_.data_begin, file_bytes_, Where(), &tensor_->second);
    return placed.ok() || Fail(placed);
  }

  std::string Where() const { return name_ + ": tensor " + tensor_->first; }
  bool NoObject() override {
    return Fail(ModelError("%s: the header is not a JSON object; %s", name_, kRefetch));
  }
  bool Incomplete() {
    return Fail(ModelError("%s: needs dtype, shape and two data_offsets; %s", Where(), kRefetch));
  }

  const uint64_t file_bytes_;
  SafetensorsHeader& header_;
  std::pair<const std::string, StoredArray>* tensor_ = nullptr;  // whose entry is read
  bool metadata_ = false;                                        // and it is no tensor
  Field field_ = kOther;                                         // whose value is read
  uint8_t given_ = 0;                                            // fields of the entry so far
  int offsets_ = 0;
  uint64_t begin_ = 0, end_ = 0;
};

// Keeps the weight_map of an index.
class IndexReader final : public ValueReader {
 public:
  IndexReader(const std::string& name, std::map<std::string, std::string>* files)
      : ValueReader(name), files_(*files) {}

  bool end_object() override { return --depth_ != 0 || has_map_ || NoObject(); }
  bool key(std::string& text) override {
    if (depth_ == 1) return StartField(text);
    return !in_map_ || StartTensor(text);
  }
  bool string(std::string& text) override {
    if (!Value(Kind::kText)) return false;
    if (!in_map_) return true;
    if (!IsPlainFileName(text)) return NoFileName(": '" + text + "' is no file of this directory");
    entry_->second = text;
    return true;
  }

 private:
  bool Value(Kind kind) override {
    if (depth_ == 0) return kind == Kind::kObject || NoObject();
    if (!in_map_) return true;
    if (depth_ == 1) return kind == Kind::kObject || NoObject();
    return kind == Kind::kText || NoFileName("");
  }
  bool StartField(const std::string& field) {
    in_map_ = field == kWeightMap;
    if (in_map_ && has_map_)
      return Fail(ModelError("%s: names %s twice; %s", name_, kWeightMap, kRefetch));
    has_map_ = has_map_ || in_map_;
    return true;
  }
  bool StartTensor(const std::string& tensor) {
    const auto [added, is_new] = files_.try_emplace(tensor);
    if (!is_new) {
      return Fail(
          ModelError("%s: %s names a tensor twice, %s; %s", name_, kWeightMap, tensor, kRefetch));
    }
    if (files_.size() > kMostTensors)
      return Fail(ModelError("%s: more than %d tensors; %s", name_, kMostTensors, kRefetch));
    entry_ = &*added;
    return true;
  }
  bool NoFileName(const std::string& why) {
    return Fail(ModelError("%s: %s.%s is not a file's name%s; %s", name_, kWeightMap, entry_->first,
                           why, kRefetch));
  }
  bool NoObject() override {
    return Fail(ModelError("%s: no JSON object with a %s; %s", name_, kWeightMap, kRefetch));
  }

  std::map<std::string, std::string>& files_;
  std::pair<const std::string, std::string>* entry_ = nullptr;  // whose file comes next
  bool in_map_ = false;  // between the key weight_map and the one behind it
  bool has_map_ = false;
};

Status CheckOverlaps(const SafetensorsHeader& header, const std::string& name) {
  std::vector<std::pair<const StoredArray*, const std::string*>> order;
  for (const auto& [tensor, info] : header.tensors) {
    if (info.bytes > 0) order.emplace_back(&info, &tensor);
  }
  std::sort(order.begin(), order.end(),
            [](const auto& a, const auto& b) { return a.first->offset < b.first->offset; });
  for (size_t i = 1; i < order.size(); ++i) {
    if (order[i - 1].first->offset + order[i - 1].first->bytes > order[i].first->offset) {
      return ModelError("%s: tensors %s and %s overlap; %s", name, *order[i - 1].second,
                        *order[i].second, kRefetch);
    }
  }
  return OkStatus();
}

// Empty if there is no index.
StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& directory) {
  const std::string path = directory + "/" + kSafetensorsIndex;
  if (!FileExists(path)) return std::map<std::string, std::string>();
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string text,
                            ReadTextFile(path, kMostIndexBytes, ErrorKind::kModel));
  return ParseSafetensorsIndex(text, path);
}

}  // namespace

bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name[0] != '.' && name.find_first_of("/\\") == std::string::npos;
}

StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(std::string_view text,
                                                                   const std::string& name) {
  std::map<std::string, std::string> files;
  IndexReader reader(name, &files);
  if (!json::sax_parse(text.begin(), text.end(), &reader)) return reader.status();
  return files;
}

StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text, uint64_t file_bytes,
                                                   const std::string& name) {
  SafetensorsHeader header;
  header.data_begin = 8 + text.size();
  if (header.data_begin > file_bytes)
    return ModelError("%s: the header is longer than the file; %s", name, kRefetch);
  HeaderReader reader(file_bytes, name, &header);
  if (!json::sax_parse(text.begin(), text.end(), &reader)) return reader.status();
  header.tensors.erase(kMetadata);
  LOCKSTEP_RETURN_IF_ERROR(CheckOverlaps(header, name));
  return header;
}

namespace {

// All *.safetensors files of a directory: those that model.safetensors.index.json names (each must
// be there) and any beside them (GLM-4.6 and 4.7 keep layer 92 in mtp.safetensors, in some copies
// outside the index).
class SafetensorsCheckpoint final : public Checkpoint {
 public:
  Status Open(const std::string& directory);

 private:
  Status AddFile(const std::string& path, const std::map<std::string, std::string>& index);
  std::map<std::string, StoredArray> arrays_;
};

// The names of the files, each once.
StatusOr<std::vector<std::string>> ListFiles(const std::string& directory,
                                             const std::map<std::string, std::string>& index) {
  std::vector<std::string> files;
  for (const auto& [tensor, file] : index) files.push_back(file);
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                            NamesIn(directory, ErrorKind::kModel));
  for (const std::string& name : names) {
    if (std::filesystem::path(name).extension() == ".safetensors") files.push_back(name);
  }
  std::sort(files.begin(), files.end());
  files.erase(std::unique(files.begin(), files.end()), files.end());
  if (files.empty())
    return ModelError("--model %s: holds no *.safetensors file and no .gguf file", directory);
  return files;
}

Status SafetensorsCheckpoint::Open(const std::string& directory) {
  path_ = directory;
  LOCKSTEP_ASSIGN_OR_RETURN(const auto index, ReadIndex(directory));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> files, ListFiles(directory, index));
  for (const std::string& file : files) {
    if (!FileExists(directory + "/" + file)) {
      return ModelError("%s/%s: missing, but %s names it; fetch it", directory, file,
                        kSafetensorsIndex);
    }
    LOCKSTEP_RETURN_IF_ERROR(AddFile(directory + "/" + file, index));
  }
  for (const auto& [tensor, file] : index) {
    if (!arrays_.contains(tensor)) {
      return ModelError(
          "%s/%s: tensor %s is missing, but %s says it is there; fetch the file again", directory,
          file, tensor, kSafetensorsIndex);
    }
  }
  config_file_ = directory + "/config.json";
  if (FileExists(config_file_)) {
    LOCKSTEP_ASSIGN_OR_RETURN(config_,
                              ReadTextFile(config_file_, kMostConfigBytes, ErrorKind::kModel));
  }
  LOCKSTEP_ASSIGN_OR_RETURN(tensors_, TensorsOfArrays(arrays_, config_, directory));
  arrays_.clear();
  return OkStatus();
}

Status SafetensorsCheckpoint::AddFile(const std::string& path,
                                      const std::map<std::string, std::string>& index) {
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<RandomAccessFile> opened,
                            RandomAccessFile::Open(path, ErrorKind::kModel));
  const RandomAccessFile& file = *opened;
  if (file.size_bytes() < 8)
    return ModelError("%s: %d bytes, too short for a header; %s", path, file.size_bytes(),
                      kRefetch);
  uint64_t header_bytes = 0;
  LOCKSTEP_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(&header_bytes, 1))));
  if (header_bytes > kMaxHeaderBytes || header_bytes > file.size_bytes() - 8) {
    return ModelError("%s: claims a header of %d bytes in a file of %d; %s", path, header_bytes,
                      file.size_bytes(), kRefetch);
  }
  std::string text(header_bytes, '\0');
  LOCKSTEP_RETURN_IF_ERROR(file.Read(8, std::as_writable_bytes(std::span(text))));
  LOCKSTEP_ASSIGN_OR_RETURN(SafetensorsHeader header,
                            ParseSafetensorsHeader(text, file.size_bytes(), path));
  const std::string base = std::filesystem::path(path).filename().string();
  for (auto& [tensor, array] : header.tensors) {
    const auto listed = index.find(tensor);
    if (listed != index.end() && listed->second != base)
      continue;  // the index prefers another file
    array.file = &file;
    if (!arrays_.emplace(tensor, array).second) {
      return ModelError(
          "%s: tensor %s is also in %s; remove the file that does not belong to this checkpoint",
          path, tensor, arrays_[tensor].file->path());
    }
  }
  files_.push_back(std::move(opened));
  return OkStatus();
}

}  // namespace

StatusOr<std::unique_ptr<Checkpoint>> OpenSafetensors(const std::string& directory) {
  auto checkpoint = std::make_unique<SafetensorsCheckpoint>();
  LOCKSTEP_RETURN_IF_ERROR(checkpoint->Open(directory));
  return checkpoint;
}

}  // namespace lockstep
