#include "runtime/weights/checkpoint.h"

#include <algorithm>

#include "runtime/base/digest.h"
#include "runtime/base/gguf.h"
#include "runtime/weights/shard_file.h"

namespace lockstep {
namespace {

// Read from the middle of every tensor for the digest: less than one page each.
constexpr uint64_t kSampleBytes = 1024;

// Samples that are read together: files of another machine answer many reads at once.
constexpr size_t kSamplesAtOnce = 8192;

// The values of arrays that the digest takes, in the order of `arrays`.
class Samples {
 public:
  explicit Samples(std::vector<const StoredArray*> arrays) : arrays_(std::move(arrays)) {}

  StatusOr<std::vector<std::byte>> Next() {
    if (at_ % kSamplesAtOnce == 0) LOCKSTEP_RETURN_IF_ERROR(ReadBatch());
    return std::move(samples_[at_++ % kSamplesAtOnce]);
  }

 private:
  Status ReadBatch() {
    samples_.assign(std::min(kSamplesAtOnce, arrays_.size() - at_), {});
    std::map<const RandomAccessFile*, std::vector<FilePart>> parts;
    for (size_t i = 0; i < samples_.size(); ++i) {
      const StoredArray& array = *arrays_[at_ + i];
      samples_[i].resize(std::min(array.bytes, kSampleBytes));
      const uint64_t middle = array.offset + (array.bytes - samples_[i].size()) / 2;
      parts[array.file].push_back({middle, samples_[i]});
    }
    for (const auto& [file, of_file] : parts) LOCKSTEP_RETURN_IF_ERROR(file->ReadParts(of_file));
    return OkStatus();
  }

  const std::vector<const StoredArray*> arrays_;
  size_t at_ = 0;
  std::vector<std::vector<std::byte>> samples_;
};

std::vector<const StoredArray*> ArraysOf(const TensorInfo& info) {
  std::vector<const StoredArray*> arrays;
  for (const StoredArray* array : {&info.data, &info.scales, &info.biases, &info.whole_scale}) {
    if (array->present()) arrays.push_back(array);
  }
  return arrays;
}

class FormatsView final : public Checkpoint {
 public:
  FormatsView(const Checkpoint& source, const std::map<std::string, WeightFormat>& formats) {
    path_ = source.path();
    config_ = source.config();
    config_file_ = source.config_file();
    tensors_ = source.tensors();
    for (const auto& [name, format] : formats) {
      TensorInfo& info = tensors_.at(name);
      if (info.format != format) info = Converted(info, format);
    }
  }
};

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

TensorInfo Converted(const TensorInfo& info, const WeightFormat& format) {
  TensorInfo converted;
  converted.data = info.data;
  converted.shape = info.shape;
  converted.storage = Storage::kConverted;
  converted.format = format;
  converted.original = std::make_shared<const TensorInfo>(info);
  return converted;
}

std::unique_ptr<Checkpoint> WithFormats(const Checkpoint& source,
                                        const std::map<std::string, WeightFormat>& formats) {
  return std::make_unique<FormatsView>(source, formats);
}

const TensorInfo* Checkpoint::Find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

StatusOr<uint64_t> Checkpoint::Digest() const {
  if (digest_.has_value()) return *digest_;
  uint64_t digest = DigestOf(config_.data(), config_.size());
  std::vector<const StoredArray*> all;
  for (const auto& [name, info] : tensors_) {
    const std::vector<const StoredArray*> arrays = ArraysOf(info);
    all.insert(all.end(), arrays.begin(), arrays.end());
  }
  Samples samples(std::move(all));
  for (const auto& [name, info] : tensors_) {
    const std::string line = name + info.ShapeText() + info.format.Name();
    digest = DigestOf(line.data(), line.size(), digest);
    for (const StoredArray* array : ArraysOf(info)) {
      const std::string place =
          array->type + ShapeText(array->shape) + std::to_string(array->file->size_bytes());
      digest = DigestOf(place.data(), place.size(), digest);
      LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::byte> sample, samples.Next());
      digest = DigestOf(sample.data(), sample.size(), digest);
    }
  }
  return digest;
}

}  // namespace lockstep
