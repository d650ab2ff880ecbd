// A checkpoint, whatever its files: named tensors, where each lies, and how its rows become the
// portable layout (tensor/weight_format.h). Names and shapes are those of Hugging Face's glm4_moe
// and glm4_moe_lite, one tensor per expert, also where the files say it otherwise (GGUF names,
// MLX's stacks of experts).
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/base/file.h"
#include "runtime/base/status.h"
#include "runtime/tensor/weight_format.h"
#include "runtime/weights/partition.h"

namespace lockstep {

// The most tensors of one checkpoint, also of one file's list of them: GLM-4.7 has 43 000 (an
// expert's matrix each). Bounds what absurd files can ask for.
inline constexpr size_t kMostTensors = 500'000;

std::string ShapeText(const std::vector<int64_t>& shape);  // "[64, 128]"

// An array in a file, row-major, contiguous.
struct StoredArray {
  std::string type;  // as the file says: "BF16", "F8_E4M3", "U32", "Q4_K", ...
  std::vector<int64_t> shape;
  const RandomAccessFile* file = nullptr;
  uint64_t offset = 0;  // of the first byte, in the file
  uint64_t bytes = 0;

  bool present() const { return file != nullptr; }
};

// How the bytes of a tensor's rows become portable rows (weights/transcode.h).
enum class Storage : uint8_t {
  kPlain,      // numbers as they are
  kGgml,       // blocks of ggml
  kFp8,        // e4m3 codes, scales apart
  kMlx,        // codes in 32-bit words, scales and biases apart
  kNvfp4,      // e2m1 codes in bytes (low nibble first), e4m3 scales of 16, one float32 scale
  kPortable,   // portable rows as they are, of a slice (weights/shard_file.h)
  kConverted,  // rows of another tensor, brought to this format (WithFormats)
};

// What a file of one rank holds of a tensor.
struct StoredSlice {
  TensorSlice what;
  uint64_t checksum = 0;  // Digest64 of its bytes
};

struct TensorInfo {
  StoredArray data;
  std::vector<int64_t> shape;  // in weights: [outputs, inputs], or [n]
  Storage storage = Storage::kPlain;
  WeightFormat format;                         // of its portable rows
  StoredArray scales;                          // kFp8, kMlx, kNvfp4
  StoredArray biases;                          // kMlx
  StoredArray whole_scale;                     // kNvfp4: one float32 for the whole tensor
  bool whole_scale_divides = false;            // compressed-tensors: the others are divided by it
  std::optional<StoredSlice> slice;            // kPortable
  std::shared_ptr<const TensorInfo> original;  // kConverted

  std::string ShapeText() const { return lockstep::ShapeText(shape); }
  uint64_t stored_bytes() const {
    return data.bytes + scales.bytes + biases.bytes + whole_scale.bytes;
  }
};

// The rank that opens a checkpoint. Files that `lockstep shard` made are of one rank each, for the
// shares that they were made with.
struct RankPlace {
  int rank = 0;
  std::vector<double> shares;  // one per rank
};

class Checkpoint {
 public:
  // `path`: a directory with *.safetensors and config.json, a .gguf file (its other parts are
  // found by their names), a directory that holds one GGUF model and no safetensors, or one that
  // `lockstep shard` made, of which the file of `place` is opened. Without a place such a directory
  // is refused.
  static StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& path,
                                                    const RankPlace& place = {});
  virtual ~Checkpoint() = default;

  const std::string& path() const { return path_; }
  const std::map<std::string, TensorInfo>& tensors() const { return tensors_; }
  const TensorInfo* Find(const std::string& name) const;  // nullptr if there is none
  // config.json's text, or what a GGUF file's metadata says in config.json's words.
  const std::string& config() const { return config_; }
  // The file that says so, for errors.
  const std::string& config_file() const { return config_file_; }
  // Over the config, and names, shapes, types, file sizes and a sample of every tensor's values, so
  // that a fine-tuned copy differs from its base. Reads one page a tensor. Of files of ranks: equal
  // for all that were made together.
  StatusOr<uint64_t> Digest() const;
  // Whether it is the file of one rank (lockstep shard).
  bool is_of_one_rank() const { return digest_.has_value(); }

 protected:
  std::string path_;
  std::string config_;
  std::string config_file_;
  std::vector<std::unique_ptr<RandomAccessFile>> files_;
  std::map<std::string, TensorInfo> tensors_;
  std::optional<uint64_t> digest_;  // files of ranks: what Digest() says
};

// The checkpoint with these tensors in other formats: F32, exactly, or those of QuantizedFormat
// (tensor/quantize.h), quantized row by row while they are read. `source` must outlive it.
std::unique_ptr<Checkpoint> WithFormats(const Checkpoint& source,
                                        const std::map<std::string, WeightFormat>& formats);
// One such tensor.
TensorInfo Converted(const TensorInfo& info, const WeightFormat& format);

// The constructors of the file families.
StatusOr<std::unique_ptr<Checkpoint>> OpenSafetensors(const std::string& directory);
StatusOr<std::unique_ptr<Checkpoint>> OpenGguf(const std::string& path);
StatusOr<std::unique_ptr<Checkpoint>> OpenShard(const std::string& directory,
                                                const RankPlace& place);

}  // namespace lockstep
