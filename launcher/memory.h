// Memory is decided before anything is loaded: how many KV blocks fit beside the weights, or what
// would fit.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/backend.h"
#include "runtime/model/model.h"

namespace lockstep {

// The KV blocks of so many tokens.
inline int64_t BlocksOf(int64_t tokens) { return (tokens + kBlockTokens - 1) / kBlockTokens; }

struct MemoryQuestion {
  ModelConfig config;
  ModelLimits limits;  // kv_blocks: as many as wanted
  SlicePlan slice;     // of this rank
  int rank = 0;
  int threads = 1;               // of this rank
  uint64_t available_bytes = 0;  // what this rank may use; 0: not known, everything fits
  // Of a device with memory of its own, where this rank computes on one (0: it does not): there lie
  // weights, cache and scratch, and only what is exchanged, and what tensors pass through, is in
  // available_bytes.
  uint64_t device_bytes = 0;
};

// The KV blocks that fit, at most limits.kv_blocks. A ModelError with the plan and with what would
// fit if not even one sequence of limits.max_model_len does.
StatusOr<int64_t> FitKvBlocks(const MemoryQuestion& question);

// "weights 3.1 GiB, KV 1.2 GiB (2048 blocks: 8 sequences of 4096 tokens), scratch 90 MiB: 4.4 GiB
// in all"
std::string DescribePlan(const MemoryPlan& plan, const ModelLimits& limits);

// Bytes a second that the pool's threads read from memory just now, the best of some passes; 0 if
// there is no memory to read. Takes 64 MiB a thread for a fraction of a second.
uint64_t MemoryRate(ThreadPool& pool);

// This rank's part of the memory that the node has left, some of it kept back for everything else.
uint64_t MemoryForRank(int ranks_on_this_host);

// The same of a rank that may compute on a device: what it has left counts, not what it is sold
// with.
struct RankMemory {
  uint64_t host_bytes = 0;
  uint64_t device_bytes = 0;  // of a device with memory of its own; else 0
  // Of what holds the weights.
  uint64_t bytes() const { return device_bytes > 0 ? device_bytes : host_bytes; }
};
RankMemory MemoryForRank(const std::optional<kernels::DeviceMemory>& device, int ranks_on_this_host,
                         int ranks_on_device);

}  // namespace lockstep
