// Writes what each rank holds of a checkpoint to a file of its own (weights/shard_file.h), exactly
// or in fewer bits.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep {

struct ShardOptions {
  std::string directory;       // is made if it is not there
  std::vector<double> shares;  // one per rank, validated
  // Of every rank, all tensors in the order in which it loads them, empty slices too.
  std::vector<std::vector<SliceRequest>> slices;
  // Of matrices that change their format: those of QuantizedFormat (tensor/quantize.h). Whole rows
  // are quantized and then cut. Where cuts do not fit a format the matrix becomes F32, exactly.
  std::map<std::string, WeightFormat> formats;
  // Only this rank's file is made, of only what it holds; -1: all.
  int only_rank = -1;
  int threads = 1;
  // Called with bytes written and to be written, from any thread, one at a time; may be empty.
  std::function<void(uint64_t done, uint64_t total)> progress;
  // Asked now and then from any thread; true ends the work with InterruptedError. May be empty.
  std::function<bool()> stop;
  // What is written stands in the journal at least this often.
  uint64_t journal_bytes = uint64_t{256} << 20;
  int64_t journal_ms = 1'000;
  // Rows that a thread has in hand, in the format in which they are largest; at least one row.
  uint64_t chunk_bytes = uint64_t{4} << 20;
};

struct ShardResult {
  std::vector<uint64_t> file_bytes;  // of every rank, or of the only one
  int64_t tensors = 0;
  int64_t tensors_kept = 0;  // written by an earlier start
  uint64_t settings = 0;     // the set's digest
  uint64_t source = 0;       // the checkpoint's
  // Of the tensors that the files hold in another format than the source.
  std::map<std::string, WeightFormat> formats;
};

// Files appear under their names when all are whole; until then they are named .part, and
// shard-rank-R.journal beside each says which tensors are done. A start with the same checkpoint
// and settings after an end of any kind goes on from there; one with others begins anew. Files that
// are whole are kept if they are what would be written, and an error if not. Memory: about 20 MiB a
// thread and one row more, and the headers of all files that are written: about 0.5 KB for each
// tensor and rank, 22 MB a rank for the 45,000 tensors of a GLM-4.7 whose experts stand apart.
StatusOr<ShardResult> WriteShards(const Checkpoint& source, const ShardOptions& options);

}  // namespace lockstep
