// Checkpoints in safetensors files: where every array lies, checked before anything is believed,
// and which arrays together are one quantized tensor.
// Format: https://github.com/huggingface/safetensors (8-byte header length, JSON header, data).
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep {

// One parsed header: names to places in the file.
struct SafetensorsHeader {
  uint64_t data_begin = 0;
  std::map<std::string, StoredArray> tensors;  // offset is absolute in the file; file is nullptr
};

// Parses the header JSON of a file of `file_bytes`. Refuses overlapping tensors, offsets outside
// the file, sizes that contradict shape and type, and numbers that overflow. `name` is the file's
// path, for errors.
StatusOr<SafetensorsHeader> ParseSafetensorsHeader(std::string_view json, uint64_t file_bytes,
                                                   const std::string& name);

// The file that says which file holds which tensor, and the most bytes of it that are read.
inline constexpr char kSafetensorsIndex[] = "model.safetensors.index.json";
inline constexpr uint64_t kMostIndexBytes = uint64_t{64} << 20;

// Whether it can be the name of a file in a directory, and of none elsewhere.
bool IsPlainFileName(const std::string& name);

// The index's weight_map: tensors to names of files (IsPlainFileName). Refuses others, a tensor
// that is named twice and more than kMostTensors. `name` is the index's path or URL, for errors.
StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(std::string_view text,
                                                                   const std::string& name);

// The tensors that the arrays of all files make up, by their names in Hugging Face's checkpoints:
// plain ones, and quantized ones with their scales, recognised by their arrays:
//
//     FP8     weight F8_E4M3, weight_scale per row (compressed-tensors) or for the whole, or
//             weight_scale_inv per 128 x 128 tile
//     NVFP4   weight U8, weight_scale, weight_scale_2 (ModelOpt); or weight_packed U8,
//             weight_scale, weight_global_scale (compressed-tensors)
//     MLX     weight U32, scales, biases; bits and group from `config`'s "quantization"; stacks
//             of experts (switch_mlp) are taken apart
//
// Scales of activations and of the KV cache (input_scale, k_scale, ...) are left out: lockstep
// rounds neither by the checkpoint's scales. `config` is config.json's text ("" if there is none),
// `directory` its place, for errors.
StatusOr<std::map<std::string, TensorInfo>> TensorsOfArrays(
    const std::map<std::string, StoredArray>& arrays, const std::string& config,
    const std::string& directory);

}  // namespace lockstep
