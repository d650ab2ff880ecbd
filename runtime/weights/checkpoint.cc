#include "runtime/weights/checkpoint.h"

#include <algorithm>
#include <filesystem>

#include "runtime/base/digest.h"
#include "runtime/base/gguf.h"
#include "runtime/weights/shard_file.h"

namespace lockstep {
namespace {

// Read from the middle of every tensor for the digest: less than one page each.
constexpr uint64_t kSampleBytes = 1024;

// Whether the directory was made by `lockstep shard`.
StatusOr<bool> HoldsShards(const std::string& directory) {
  bool found = false;
  std::error_code error;
  std::filesystem::directory_iterator entry(directory, error);
  for (; !error && entry != std::filesystem::directory_iterator(); entry.increment(error))
    found = found || entry->path().filename().string().ends_with(kShardSuffix);
  if (error)
    return ModelError("--model %s: cannot list the directory: %s", directory, error.message());
  return found;
}

// What the digest takes of one array: its place in the checkpoint and a sample of its values.
StatusOr<uint64_t> DigestArray(const StoredArray& array, uint64_t digest) {
  if (!array.present()) return digest;
  const std::string line =
      array.type + ShapeText(array.shape) + std::to_string(array.file->size_bytes());
  digest = DigestOf(line.data(), line.size(), digest);
  std::vector<std::byte> sample(std::min(array.bytes, kSampleBytes));
  const uint64_t middle = array.offset + (array.bytes - sample.size()) / 2;
  LOCKSTEP_RETURN_IF_ERROR(array.file->Read(middle, sample));
  return DigestOf(sample.data(), sample.size(), digest);
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (const int64_t size : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}

StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path,
                                                       const RankPlace& place) {
  if (!IsDirectory(path)) {
    if (!FileExists(path)) {
      return ModelError(
          "--model %s: no such directory or file; give a checkpoint directory in Hugging Face "
          "layout, or a .gguf file",
          path);
    }
    if (!IsGgufModel(path)) {
      return ModelError("--model %s: is no .gguf file; give one, or the directory of a checkpoint",
                        path);
    }
    return OpenGguf(path);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const bool shards, HoldsShards(path));
  if (shards) return OpenShard(path, place);
  return IsGgufModel(path) ? OpenGguf(path) : OpenSafetensors(path);
}

const TensorInfo* Checkpoint::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

StatusOr<uint64_t> Checkpoint::Digest() const {
  if (digest_.has_value()) return *digest_;
  uint64_t digest = DigestOf(config_.data(), config_.size());
  for (const auto& [name, info] : tensors_) {
    const std::string line = name + info.ShapeText() + info.format.Name();
    digest = DigestOf(line.data(), line.size(), digest);
    for (const StoredArray* array : {&info.data, &info.scales, &info.biases, &info.whole_scale}) {
      LOCKSTEP_ASSIGN_OR_RETURN(digest, DigestArray(*array, digest));
    }
  }
  return digest;
}

}  // namespace lockstep
