// The container of GGUF files (version 3): metadata by key, and where every tensor lies. Used by
// the weights (tensors, configuration) and the text (tokenizer, chat template).
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "runtime/base/file.h"
#include "runtime/base/status.h"

namespace lockstep {

// Integers of all widths are int64 (uint64 values above its range are refused), floats double.
using GgufValue = std::variant<int64_t, double, bool, std::string, std::vector<int64_t>,
                               std::vector<double>, std::vector<bool>, std::vector<std::string>>;

// A type of tensors that lockstep reads: rows of blocks.
struct GgufType {
  uint32_t id = 0;  // ggml_type
  const char* name = "";
  int64_t block_weights = 1;
  uint64_t block_bytes = 0;
};
// nullptr for the others.
const GgufType* FindGgufType(uint32_t id);
// "Q4_K"; also of types that are not read: "IQ2_XXS", or "number 4" if there is no such type.
std::string GgufTypeName(uint32_t id);

struct GgufTensor {
  uint32_t type = 0;           // ggml_type, one that FindGgufType knows
  std::vector<int64_t> shape;  // as ggml says it: innermost (inputs) first; 1 to 4, each >= 1
  uint64_t offset = 0;         // absolute in its file
  uint64_t bytes = 0;
  int part = 0;  // index into Gguf::files
};

struct Gguf {
  std::map<std::string, GgufValue> metadata;  // of the first part
  std::map<std::string, GgufTensor> tensors;  // of all parts
  std::vector<std::unique_ptr<RandomAccessFile>> files;

  // nullptr if the key is absent or of another kind.
  const int64_t* Integer(const std::string& key) const;
  const double* Number(const std::string& key) const;
  const bool* Flag(const std::string& key) const;
  const std::string* Text(const std::string& key) const;
  const std::vector<int64_t>* Integers(const std::string& key) const;
  const std::vector<std::string>* Texts(const std::string& key) const;
};

// One file's header. Everything is bounded by `file_bytes` and by fixed limits (key and string
// lengths, array lengths, number of keys and tensors) before memory is taken; overlapping tensors,
// unaligned or outside offsets, unknown types, absurd counts and nested arrays are refused.
// `header` is the file's beginning, at least to the end of the list of tensors; `gguf` is empty
// before and is filled as part 0. `name` is the path, for errors.
Status ParseGgufHeader(std::string_view header, uint64_t file_bytes, const std::string& name,
                       Gguf* gguf);
// The same for a beginning that may be too short: then `*more` is set, the status is ok, and `gguf`
// holds nothing of use.
Status ParseGgufBeginning(std::string_view header, uint64_t file_bytes, const std::string& name,
                          Gguf* gguf, bool* more);

// A file that holds this metadata and no tensors. Keys about parts (split.*) are left out.
std::string GgufMetadataText(const std::map<std::string, GgufValue>& metadata);

// Whether `path` means a GGUF model: a file whose name ends in .gguf, or a directory that holds
// such files and no *.safetensors. Reads no file.
bool IsGgufModel(const std::string& path);

// The file `path` or, if it is one of "-00001-of-0000N", the paths of all parts, by their names
// alone.
std::vector<std::string> GgufPartPaths(const std::string& path);

// The file and, if it is one of "-00001-of-0000N", all its parts. A part that is missing, of
// another model or holds other tensors than split.tensors.count says is an error that names it.
// `path` may be any of the parts, or a directory that holds exactly one GGUF model (`mmproj` files
// are left out). Tensor data is not read.
StatusOr<Gguf> OpenGgufFiles(const std::string& path);

}  // namespace lockstep
