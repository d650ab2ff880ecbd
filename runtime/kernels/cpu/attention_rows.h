// Attention on the CPU: what one thread does with one chunk, for one instruction set, and how the
// chunks are shared among threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/kernels/backend.h"

namespace lockstep::kernels {

// A few heads of one row over the positions of one chunk. A head's query has a part for the whole
// of a position's key, or two parts for the latent and the rotated key behind it.
struct ChunkPart {
  CacheType type = CacheType::kF32;
  const float* queries = nullptr;
  int64_t query_stride = 0;  // between heads
  int64_t dim = 0;
  const float* second_queries = nullptr;
  int64_t second_stride = 0;
  int64_t second_dim = 0;  // 0: none
  int64_t second_at = 0;   // bytes into a position's row
  float scale = 1;
  int64_t heads = 0;     // at most `together`
  int64_t together = 0;  // of AttentionScratch
  int64_t value_dim = 0;
  int64_t count = 0;                // positions in the chunk, at least one
  int64_t block_tokens = 0;         // divides kAttentionChunk
  const int32_t* blocks = nullptr;  // those of the chunk
  const std::byte* keys = nullptr;  // of the head in block 0
  const std::byte* values = nullptr;
  int64_t page_bytes = 0;   // between blocks
  int64_t row_bytes = 0;    // between positions
  float* scores = nullptr;  // scratch [together, kAttentionChunk]
  float* chunk = nullptr;   // result [together, value_dim], then [together, 2] maximum and sum
};

// Takes one head's chunk into what the chunks before it gave.
struct ChunkFold {
  bool first = false;
  bool last = false;
  int64_t dim = 0;
  const float* values = nullptr;  // [dim] of the chunk
  const float* ends = nullptr;    // its maximum and sum
  float* out = nullptr;           // [dim]; the head's result after the last
  float* state = nullptr;         // maximum and sum so far
};

struct AttentionKernels {
  // Norms and turns a row's queries and keys in place.
  void (*prepare_row)(const AttentionArgs& args, int64_t row);
  // Norms and turns a row's latent and key in place, and parts its queries.
  void (*prepare_latent_row)(const LatentAttentionArgs& args, int64_t row);
  void (*attend_chunk)(const ChunkPart& part);
  void (*fold_chunk)(const ChunkFold& fold);
};

// The sets of kernel_table.h, compiled into files of their own; to be called only where the
// processor has the set.
const AttentionKernels& Avx512Attention();
const AttentionKernels& Avx2Attention();
const AttentionKernels& BaselineAttention();

// Backend::PrepareAttention and PrepareLatentAttention.
void PrepareRows(const AttentionKernels& kernels, Queue& queue, const AttentionArgs& args);
void PrepareRows(const AttentionKernels& kernels, Queue& queue, const LatentAttentionArgs& args);

// Backend::Attention and LatentAttention.
void Attend(const AttentionKernels& kernels, Queue& queue, const AttentionArgs& args);
void Attend(const AttentionKernels& kernels, Queue& queue, const LatentAttentionArgs& args);

}  // namespace lockstep::kernels
