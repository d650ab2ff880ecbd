// The files of a GGUF model: finding its parts, reading their headers, putting them together.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <utility>

#include "runtime/base/gguf.h"

namespace lockstep {
namespace {

namespace fs = std::filesystem;

// The first read; most headers with a tokenizer are of 5 to 15 MiB.
constexpr uint64_t kFirstBytes = uint64_t{1} << 20;
constexpr uint64_t kMostBytes = uint64_t{128} << 20;
constexpr int kMostParts = 10'000;
constexpr const char* kSuffix = ".gguf";

// "BASE-00002-of-00003.gguf"; one part, with the whole path as base, for other names.
struct PartName {
  std::string base;
  int number = 1;
  int count = 1;
  bool split = false;

  std::string Path(int part) const {
    if (!split) return base;
    return absl::StrFormat("%s-%05d-of-%05d%s", base, part, count, kSuffix);
  }
};

bool FiveDigits(const std::string& text, size_t at, int* number) {
  for (size_t i = at; i < at + 5; ++i) {
    if (text[i] < '0' || text[i] > '9') return false;
  }
  *number = std::atoi(text.substr(at, 5).c_str());
  return true;
}

PartName NameOf(const std::string& path) {
  PartName name;
  name.base = path;
  const size_t tail = std::string("-00001-of-00001.gguf").size();
  if (path.size() <= tail) return name;
  const size_t at = path.size() - tail;
  int number = 0, count = 0;
  if (path[at] == '-' && path.compare(at + 6, 4, "-of-") == 0 && path.ends_with(kSuffix) &&
      FiveDigits(path, at + 1, &number) && FiveDigits(path, at + 10, &count)) {
    name = {path.substr(0, at), number, count, true};
  }
  return name;
}

// The *.gguf files of a directory that hold weights of a language model.
std::vector<std::string> ListDirectory(const std::string& directory, bool* safetensors) {
  std::vector<std::string> paths;
  *safetensors = false;
  const StatusOr<std::vector<std::string>> names = NamesIn(directory);
  if (!names.ok()) return paths;
  for (const std::string& file : *names) {
    if (file.ends_with(".safetensors") || file.ends_with(".safetensors.index.json"))
      *safetensors = true;
    if (file.ends_with(kSuffix) && file.find("mmproj") == std::string::npos) {
      paths.push_back((fs::path(directory) / file).string());
    }
  }
  std::sort(paths.begin(), paths.end());
  return paths;
}

// The one model of a directory.
StatusOr<std::string> PathInDirectory(const std::string& directory) {
  bool safetensors = false;
  const std::vector<std::string> paths = ListDirectory(directory, &safetensors);
  std::map<std::string, std::string> models;  // base and count -> a path
  std::string names;
  for (const std::string& path : paths) {
    const PartName name = NameOf(path);
    if (!models.emplace(name.Path(1), path).second) continue;
    names += (names.empty() ? "" : ", ") + fs::path(path).filename().string();
  }
  if (models.empty()) return ModelError("--model %s: holds no *.gguf file", directory);
  if (models.size() > 1) {
    return ModelError("--model %s: holds several GGUF models; name one of the files: %s", directory,
                      names);
  }
  return models.begin()->second;
}

Status ReadHeader(const RandomAccessFile& file, Gguf* gguf) {
  for (uint64_t want = kFirstBytes;; want *= 4) {
    std::string text(std::min({want, file.size_bytes(), kMostBytes}), '\0');
    LOCKSTEP_RETURN_IF_ERROR(file.Read(0, std::as_writable_bytes(std::span(text))));
    *gguf = Gguf();
    if (text.size() == file.size_bytes() || text.size() == kMostBytes) {
      return ParseGgufHeader(text, file.size_bytes(), file.path(), gguf);
    }
    bool more = false;
    LOCKSTEP_RETURN_IF_ERROR(ParseGgufBeginning(text, file.size_bytes(), file.path(), gguf, &more));
    if (!more) return OkStatus();
  }
}

// What a part says about itself against what its name and the first part say.
Status CheckPart(const Gguf& part, const Gguf& first, const PartName& name, int number) {
  const std::string path = name.Path(number);
  const int64_t* count = part.Integer("split.count");
  if (count == nullptr && !name.split) return OkStatus();
  if (!name.split) {
    if (*count <= 1) return OkStatus();
    return ModelError(
        "%s: is one of %d parts, but its name does not end in -00001-of-%05d.gguf; give all parts "
        "their names back",
        path, *count, *count);
  }
  const int64_t* index = part.Integer("split.no");
  if (name.count == 1 && count == nullptr) return OkStatus();
  if (count == nullptr || index == nullptr || *count != name.count || *index != number - 1) {
    return ModelError(
        "%s: says that it is part %s of %s (split.no, split.count), its name says %d of %d; the "
        "files were mixed up: fetch them again",
        path, index == nullptr ? "?" : std::to_string(*index + 1),
        count == nullptr ? "?" : std::to_string(*count), number, name.count);
  }
  for (const char* key : {"general.architecture", "general.name", "split.tensors.count"}) {
    const auto here = part.metadata.find(key), there = first.metadata.find(key);
    if (here != part.metadata.end() &&
        (there == first.metadata.end() || here->second != there->second)) {
      return ModelError("%s: differs from %s in %s, so they are not parts of one model", path,
                        name.Path(1), key);
    }
  }
  return OkStatus();
}

Status AddPart(const PartName& name, int number, Gguf* whole) {
  const std::string path = name.Path(number);
  if (name.split && !FileExists(path)) {
    return ModelError("%s: missing; it is part %d of %d of the model: fetch it", path, number,
                      name.count);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(auto file, RandomAccessFile::Open(path, ErrorKind::kModel));
  Gguf part;
  LOCKSTEP_RETURN_IF_ERROR(ReadHeader(*file, &part));
  LOCKSTEP_RETURN_IF_ERROR(CheckPart(part, number == 1 ? part : *whole, name, number));
  if (number == 1) whole->metadata = std::move(part.metadata);
  for (auto& [tensor_name, tensor] : part.tensors) {
    tensor.part = number - 1;
    const auto [known, added] = whole->tensors.emplace(tensor_name, std::move(tensor));
    if (!added) {
      return ModelError("%s: tensor %s is also in %s, so they are not parts of one model", path,
                        tensor_name, name.Path(known->second.part + 1));
    }
  }
  whole->files.push_back(std::move(file));
  return OkStatus();
}

}  // namespace

bool IsGgufModel(const std::string& path) {
  if (!IsDirectory(path)) return path.ends_with(kSuffix);
  bool safetensors = false;
  return !ListDirectory(path, &safetensors).empty() && !safetensors;
}

std::vector<std::string> GgufPartPaths(const std::string& path) {
  const PartName name = NameOf(path);
  if (!name.split || name.count < 1 || name.count > kMostParts) return {path};
  std::vector<std::string> paths;
  for (int number = 1; number <= name.count; ++number) paths.push_back(name.Path(number));
  return paths;
}

StatusOr<Gguf> OpenGgufFiles(const std::string& path) {
  std::string file = path;
  if (IsDirectory(path)) {
    LOCKSTEP_ASSIGN_OR_RETURN(file, PathInDirectory(path));
  } else if (!FileExists(path)) {
    return ModelError("--model %s: no such file", path);
  }
  const PartName name = NameOf(file);
  if (name.count < 1 || name.count > kMostParts || name.number < 1 || name.number > name.count) {
    return ModelError("%s: its name says part %d of %d, which cannot be", file, name.number,
                      name.count);
  }
  Gguf gguf;
  for (int number = 1; number <= name.count; ++number) {
    LOCKSTEP_RETURN_IF_ERROR(AddPart(name, number, &gguf));
  }
  const int64_t* tensors = gguf.Integer("split.tensors.count");
  if (tensors != nullptr && *tensors != static_cast<int64_t>(gguf.tensors.size())) {
    return ModelError(
        "%s: split.tensors.count says %d tensors, but the %d parts hold %d; fetch them again",
        name.Path(1), *tensors, name.count, gguf.tensors.size());
  }
  return gguf;
}

}  // namespace lockstep
