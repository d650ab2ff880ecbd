#include "runtime/weights/safetensors.h"

#include <algorithm>
#include <cstring>
#include <filesystem>

#include "nlohmann/json.hpp"
#include "runtime/base/file.h"

namespace lockstep {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeaderBytes = uint64_t{100} << 20;  // the format's own limit
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

StatusOr<uint64_t> AsOffset(const json& value, const std::string& where) {
  if (!value.is_number_unsigned())
    return ModelError("%s is not a whole number >= 0; %s", where, kRefetch);
  return value.get<uint64_t>();
}

StatusOr<StoredArray> ParseTensor(const json& entry, uint64_t data_begin, uint64_t file_bytes,
                                  const std::string& where) {
  if (!entry.is_object() || !entry.contains("dtype") || !entry["dtype"].is_string() ||
      !entry.contains("shape") || !entry["shape"].is_array() || !entry.contains("data_offsets") ||
      !entry["data_offsets"].is_array() || entry["data_offsets"].size() != 2) {
    return ModelError("%s: needs dtype, shape and two data_offsets; %s", where, kRefetch);
  }
  StoredArray info;
  info.type = entry["dtype"].get<std::string>();
  uint64_t expected = ElementBytes(info.type);
  const bool known_type = expected != 0;
  if (entry["shape"].size() > 8)
    return ModelError("%s: %d dimensions", where, entry["shape"].size());
  for (const json& dimension : entry["shape"]) {
    LOCKSTEP_ASSIGN_OR_RETURN(const uint64_t size, AsOffset(dimension, where + ": a dimension"));
    if (size > INT64_MAX / 2 || __builtin_mul_overflow(expected, size, &expected)) {
      return ModelError("%s: the shape overflows; %s", where, kRefetch);
    }
    info.shape.push_back(static_cast<int64_t>(size));
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const uint64_t begin,
                            AsOffset(entry["data_offsets"][0], where + ": data_offsets"));
  LOCKSTEP_ASSIGN_OR_RETURN(const uint64_t end,
                            AsOffset(entry["data_offsets"][1], where + ": data_offsets"));
  if (begin > end || end > file_bytes - data_begin) {
    return ModelError(
        "%s: data_offsets [%d, %d] lie outside the file's %d bytes of data; the file was cut or "
        "its "
        "header lies, fetch it again",
        where, begin, end, file_bytes - data_begin);
  }
  info.offset = data_begin + begin;
  info.bytes = end - begin;
  if (known_type && info.bytes != expected) {
    return ModelError("%s: %s %s needs %d bytes but data_offsets give %d; %s", where, info.type,
                      ShapeText(info.shape), expected, info.bytes, kRefetch);
  }
  return info;
}

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

// The weight_map of model.safetensors.index.json: tensor to file. Empty if there is no index.
StatusOr<std::map<std::string, std::string>> ReadIndex(const std::string& directory) {
  std::map<std::string, std::string> map;
  const std::string path = directory + "/model.safetensors.index.json";
  if (!FileExists(path)) return map;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::string text,
                            ReadTextFile(path, uint64_t{256} << 20, ErrorKind::kModel));
  const json index = json::parse(text, nullptr, false);
  if (!index.is_object() || !index.contains("weight_map") || !index["weight_map"].is_object()) {
    return ModelError("%s: no JSON object with a weight_map; %s", path, kRefetch);
  }
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    if (!file.is_string()) return ModelError("%s: weight_map.%s is not a file name", path, tensor);
    const std::string name = file.get<std::string>();
    if (name.empty() || name.find('/') != std::string::npos || name[0] == '.') {
      return ModelError("%s: weight_map.%s names '%s', which is no file of this directory", path,
                        tensor, name);
    }
    map[tensor] = name;
  }
  return map;
}

}  // namespace

StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view text, uint64_t file_bytes,
                                                   const std::string& name) {
  SafetensorsHeader header;
  header.data_begin = 8 + text.size();
  if (header.data_begin > file_bytes)
    return ModelError("%s: the header is longer than the file; %s", name, kRefetch);
  bool duplicate = false;
  std::vector<std::string> seen;
  // nlohmann keeps the last of equal keys silently; a header that names a tensor twice is refused
  // instead.
  const auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
    if (event == json::parse_event_t::key && depth == 1) seen.push_back(parsed.get<std::string>());
    return depth <= 4;
  };
  const json root = json::parse(text.begin(), text.end(), watch, false);
  if (!root.is_object())
    return ModelError("%s: the header is not a JSON object; %s", name, kRefetch);
  std::sort(seen.begin(), seen.end());
  duplicate = std::adjacent_find(seen.begin(), seen.end()) != seen.end();
  if (duplicate) return ModelError("%s: the header names a tensor twice; %s", name, kRefetch);
  for (const auto& [tensor, entry] : root.items()) {
    if (tensor == "__metadata__") continue;
    LOCKSTEP_ASSIGN_OR_RETURN(
        header.tensors[tensor],
        ParseTensor(entry, header.data_begin, file_bytes, name + ": tensor " + tensor));
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckOverlaps(header, name));
  return header;
}

namespace {

constexpr uint64_t kMaxConfigBytes = uint64_t{16} << 20;

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
      return ModelError("%s/%s: missing, but model.safetensors.index.json names it; fetch it",
                        directory, file);
    }
    LOCKSTEP_RETURN_IF_ERROR(AddFile(directory + "/" + file, index));
  }
  for (const auto& [tensor, file] : index) {
    if (!arrays_.contains(tensor)) {
      return ModelError(
          "%s/%s: tensor %s is missing, but model.safetensors.index.json says it is there; fetch "
          "the file again",
          directory, file, tensor);
    }
  }
  config_file_ = directory + "/config.json";
  if (FileExists(config_file_)) {
    LOCKSTEP_ASSIGN_OR_RETURN(config_,
                              ReadTextFile(config_file_, kMaxConfigBytes, ErrorKind::kModel));
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
