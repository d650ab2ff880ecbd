// A GGUF model as a Checkpoint.
#include <algorithm>
#include <utility>

#include "runtime/base/gguf.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/ggml_blocks.h"
#include "runtime/weights/gguf_names.h"

namespace lockstep {
namespace {

class GgufCheckpoint : public Checkpoint {
 public:
  Status Load(const std::string& path);

 private:
  Status AddTensor(const std::string& gguf_name, const GgufName& name, const GgufTensor& tensor);
};

Status GgufCheckpoint::AddTensor(const std::string& gguf_name, const GgufName& name,
                                 const GgufTensor& tensor) {
  const std::string& file = files_[static_cast<size_t>(tensor.part)]->path();
  std::vector<int64_t> sizes = tensor.shape;
  int64_t count = 1;
  if (name.stack) {
    // A stack of one may have lost its outermost dimension.
    if (sizes.size() < 2 || sizes.size() > 3) {
      return ModelError("%s: tensor %s has %d dimensions, not 3; fetch the file again", file,
                        gguf_name, sizes.size());
    }
    if (sizes.size() == 3) count = sizes[2];
    sizes.resize(2);
  } else if (sizes.size() > 2) {
    return ModelError("%s: tensor %s has %d dimensions, not 1 or 2; fetch the file again", file,
                      gguf_name, sizes.size());
  }
  if (static_cast<uint64_t>(count) > kMostTensors - tensors_.size()) {
    return ModelError("%s: tensor %s is a stack of %d, too many for any model; fetch it again",
                      file, gguf_name, count);
  }
  TensorInfo info;
  LOCKSTEP_ASSIGN_OR_RETURN(info.format, FormatOfGgml(tensor.type));
  info.storage = info.format.plain() ? Storage::kPlain : Storage::kGgml;
  info.shape.assign(sizes.rbegin(), sizes.rend());
  info.data.type = FindGgufType(tensor.type)->name;
  info.data.shape = info.shape;
  info.data.file = files_[static_cast<size_t>(tensor.part)].get();
  info.data.bytes = tensor.bytes / static_cast<uint64_t>(count);
  for (int64_t index = 0; index < count; ++index) {
    info.data.offset = tensor.offset + static_cast<uint64_t>(index) * info.data.bytes;
    if (!tensors_.emplace(name.Of(index), info).second) {
      return ModelError("%s: tensor %s stands twice (as %s); fetch the file again", file, gguf_name,
                        name.Of(index));
    }
  }
  return OkStatus();
}

Status GgufCheckpoint::Load(const std::string& path) {
  path_ = path;
  LOCKSTEP_ASSIGN_OR_RETURN(Gguf gguf, OpenGgufFiles(path));
  const std::string file = gguf.files[0]->path();
  LOCKSTEP_ASSIGN_OR_RETURN(const GgufArchitecture architecture, GgufArchitectureOf(gguf, file));
  LOCKSTEP_ASSIGN_OR_RETURN(config_, GgufConfig(gguf, architecture, file));
  config_file_ = file;
  files_ = std::move(gguf.files);
  for (const auto& [gguf_name, tensor] : gguf.tensors) {
    GgufName name;
    if (!TranslateGgufName(architecture, gguf_name, &name)) {
      return ModelError(
          "%s: tensor %s is none of %s, so this model is not one that this build computes",
          files_[static_cast<size_t>(tensor.part)]->path(), gguf_name,
          *gguf.Text("general.architecture"));
    }
    LOCKSTEP_RETURN_IF_ERROR(AddTensor(gguf_name, name, tensor));
  }
  return OkStatus();
}

}  // namespace

StatusOr<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& path) {
  auto checkpoint = std::make_unique<GgufCheckpoint>();
  LOCKSTEP_RETURN_IF_ERROR(checkpoint->Load(path));
  return std::unique_ptr<Checkpoint>(std::move(checkpoint));
}

}  // namespace lockstep
