// Checkpoints in safetensors files: where every tensor lies, checked before anything is believed.
// Format: https://github.com/huggingface/safetensors (8-byte header length, JSON header, data).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace lockstep {

struct TensorInfo {
  std::string type;  // "BF16", "F32", ... as the file says
  std::vector<int64_t> shape;
  const RandomAccessFile* file = nullptr;
  uint64_t offset = 0;  // of the first byte, in the file
  uint64_t bytes = 0;

  std::string ShapeText() const;  // "[64, 128]"
};

// One parsed header: names to places relative to the start of the data.
struct SafetensorsHeader {
  uint64_t data_begin = 0;
  std::map<std::string, TensorInfo> tensors;  // offset is absolute in the file
};

// Parses the header JSON of a file of `file_bytes`. Refuses overlapping tensors, offsets outside
// the file, sizes that contradict shape and type, and numbers that overflow. `name` is the file's
// path, for errors.
StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, uint64_t file_bytes,
                                                   const std::string& name);

// All *.safetensors files of a directory: those that model.safetensors.index.json names (each must
// be there) and any beside them (GLM-4.6 and 4.7 keep layer 92 in mtp.safetensors, in some copies
// outside the index).
class Checkpoint {
 public:
  static StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& directory);

  const std::string& directory() const { return directory_; }
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  // nullptr if there is none.
  const TensorInfo* Find(const std::string& name) const;
  // Over names, shapes, types, file sizes and a sample of every tensor's values, so that a
  // fine-tuned copy differs from its base. Reads one page a tensor.
  StatusOr<uint64_t> Digest() const;

 private:
  Status AddFile(const std::string& path, const std::map<std::string, std::string>& index);
  std::string directory_;
  std::vector<std::unique_ptr<RandomAccessFile>> files_;
  std::map<std::string, TensorInfo> tensors_;
};

}  // namespace lockstep
