// Memory is decided before anything is loaded: how many KV blocks fit beside the weights, or what
// would fit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/model/model.h"

namespace lockstep {

struct MemoryQuestion {
  ModelConfig config;
  ModelLimits limits;  // kv_blocks: as many as wanted
  std::vector<double> shares;
  int rank = 0;
  uint64_t element_bytes = 2;    // of a stored weight
  int threads = 1;               // of this rank
  uint64_t available_bytes = 0;  // what this rank may use; 0: not known, everything fits
};

// The KV blocks that fit, at most limits.kv_blocks. A ModelError with the plan and with what would
// fit if not even one sequence of limits.max_model_len does.
StatusOr<int64_t> FitKvBlocks(const MemoryQuestion& question);

// "weights 3.1 GiB, KV 1.2 GiB (2048 blocks: 8 sequences of 4096 tokens), scratch 90 MiB: 4.4 GiB
// in all"
std::string DescribePlan(const MemoryPlan& plan, const ModelLimits& limits);

// This rank's part of the memory that the node has left, some of it kept back for everything else.
uint64_t MemoryForRank(int ranks_on_this_host);

// Bytes of a stored weight of a checkpoint (2 for BF16 and F16, 4 for F32), judged by the size of
// its files.
uint64_t StoredElementBytes(const std::string& directory, const ModelConfig& config);

}  // namespace lockstep
