// The files that `lockstep shard` makes of a checkpoint: one per rank, with what that rank holds of
// every tensor, so that each rank reads its own file from the first byte to the last.
//
//     bytes 0..7    "LOCKSHRD"
//           8..15   version (2)          all numbers little-endian
//          16..23   bytes of the header
//          24..31   Digest64 of the header
//          32..     the header, JSON; spaces behind it
//     then the slices in the order in which a rank loads them, each at a multiple of 4096, as
//     portable rows (tensor/weight_format.h): of rows and elements as in the whole tensor, of
//     columns each row cut (CutRow) and one behind the other.
//
// The header: "source" and "settings" (digests as 16 hexadecimal digits; the second is over
// everything that all ranks' headers say but for checksums, and equal in files that were made
// together), "rank", "shares" (one number per rank), "config" (the text of config.json), and
// "tensors", an array of {name, shape (of the whole), slice ("rows", "columns" or "elements"),
// begin, end, format (WeightFormat::Name), scales (MLX: their type, otherwise ""), offset, bytes,
// checksum (16 digits)}. Tensors of which the rank holds nothing are there with an empty range.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/tensor/weight_format.h"
#include "runtime/weights/partition.h"

namespace lockstep {

inline constexpr char kShardSuffix[] = ".lockstep";
inline constexpr uint64_t kShardAlignment = 4096;
inline constexpr uint64_t kShardPreambleBytes = 32;

struct ShardTensor {
  std::string name;
  std::vector<int64_t> shape;  // of the whole: [outputs, inputs] or [n]
  TensorSlice slice;
  WeightFormat format;
  uint64_t offset = 0;
  uint64_t bytes = 0;
  uint64_t checksum = 0;  // Digest64 of the bytes
};

struct ShardHeader {
  uint64_t source = 0;
  uint64_t settings = 0;
  int rank = 0;
  std::vector<double> shares;
  std::string config;
  std::vector<ShardTensor> tensors;

  int ranks() const { return static_cast<int>(shares.size()); }
};

// Whether the directory was made by `lockstep shard`; false if it is none.
StatusOr<bool> HoldsShards(const std::string& directory);
// The names of its files that end like those of ranks, sorted.
StatusOr<std::vector<std::string>> ShardFilesIn(const std::string& directory);

std::string ShardName(int rank, int ranks);  // "rank-0-of-2.lockstep"
// Whether a file has such a name, and whose part it is.
bool IsShardName(const std::string& name, int* rank, int* ranks);
// For how many ranks files of these names are, each number once, sorted. Other names count nothing.
std::vector<int> RankCountsOf(const std::vector<std::string>& names);
// "2", "2 and 4"; "other" if there are none.
std::string RankCountsText(const std::vector<int>& counts);

// Bytes of one row of a slice in the file; of elements, of all.
uint64_t ShardRowBytes(const ShardTensor& tensor);
int64_t ShardRows(const ShardTensor& tensor);

// Fills offsets and bytes of all tensors from shapes, slices and formats; returns the file's size.
// Formats and slices fit together (CutsFit); sizes are those of a checkpoint that was opened.
uint64_t PlaceShardTensors(ShardHeader* header);

// What stands before the first slice. Its length does not depend on the digests and checksums.
std::string ShardBeginning(const ShardHeader& header);
// Digest64 of what the header says but for the settings digest and the checksums.
uint64_t ShardSettings(const ShardHeader& header, uint64_t seed);

// The length of the header that a file's first kShardPreambleBytes announce.
StatusOr<uint64_t> ShardHeaderBytes(std::string_view preamble, uint64_t file_bytes,
                                    const std::string& name);
// `text` is the header. Everything in it is checked: ranges lie in their shapes, formats are known,
// sizes follow from both, slices lie in the file, aligned and apart, names stand once. `name` is
// the path, for errors.
StatusOr<ShardHeader> ParseShardHeader(std::string_view text, uint64_t file_bytes,
                                       const std::string& name);
// Both, with the digest, of a file.
StatusOr<ShardHeader> ReadShardHeader(const std::string& path);

}  // namespace lockstep
