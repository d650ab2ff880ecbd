// Attention over pages, of both kinds: what the kernels need to know.
//
// Softmax has the shape that runtime/kernels/attention.h specifies: a block of threads computes one
// chunk of 256 positions for up to kHeadsTogether heads that read the same keys; another kernel
// folds a row's chunks from first to last. A context that has more chunks than places is gone
// through in waves, each folded before the next. So neither the places nor the waves change a bit.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "runtime/kernels/cuda/kernels.h"

namespace lockstep::kernels::cuda {

// CacheType of runtime/kernels/cache_row.h.
enum class Stored : int { kF32, kBF16, kF16, kQ8 };

inline constexpr int kChunk = 256;         // kAttentionChunk
inline constexpr int kHeadsTogether = 12;  // GLM-4.7 has as many query heads a KV head
inline constexpr int64_t kPartExtra = 2;   // floats of a part beside its values: maximum, sum

// Where positions of the rows' sequences lie.
struct Pages {
  const int32_t* positions = nullptr;            // [rows]
  const int32_t* sequences = nullptr;            // [rows]
  const int32_t* const* block_tables = nullptr;  // per sequence
  int64_t page_bytes = 0;
  int64_t head_bytes = 0;  // from one KV head of a page to the next
  int64_t row_bytes = 0;   // from one position to the next
  int32_t block_tokens = 1;
};

// A part of queries, and the part of the stored keys that it is multiplied with.
struct QueryPart {
  const float* queries = nullptr;
  int64_t row_stride = 0, head_stride = 0;  // of queries
  const std::byte* keys = nullptr;          // of position 0 of page 0
  int32_t dim = 0;                          // 0: no such part
};

struct AttendArgs {
  Pages pages;
  QueryPart parts[2];
  const std::byte* values = nullptr;
  int32_t value_dim = 0;
  int32_t rows = 0;
  int32_t heads = 0;     // query heads
  int32_t kv_heads = 0;  // that they read
  // The query heads of KV head k are those whose index + head_shift is k * group .. + group - 1.
  int32_t group = 1, head_shift = 0;
  float scale = 1;
  bool aligned = false;  // rows begin at multiples of four of their numbers
  float* out = nullptr;
  int64_t out_row_stride = 0, out_head_stride = 0;
};

// Rows that are computed together: [first_row, first_row + rows), `slots` chunks of each at a time.
struct AttendPass {
  int32_t first_row = 0, rows = 0;
  int32_t slots = 1, first_chunk = 0;
  float* chunks = nullptr;  // [rows][heads][slots][kPartExtra + value_dim]
  float* folds = nullptr;   // [rows][heads][2]
};

// Floats of the places of one row's chunks in `slots` slots, with what its folds need.
inline int64_t PassFloats(const AttendArgs& args, int64_t slots) {
  return args.heads * (slots * (args.value_dim + kPartExtra) + 2);
}

// Attention of args.rows rows whose longest context has `most_chunks` chunks, in passes and waves
// that fit `work` (floats of it at least PassFloats(args, 1)).
cudaError_t LaunchAttention(const Launch& launch, Stored type, const AttendArgs& args,
                            int64_t most_chunks, float* work, int64_t work_floats);

struct PrepareArgs {
  Pages pages;
  int64_t rows = 0;
  int32_t query_heads = 0, kv_heads = 0, head_dim = 0, half = 0;  // half: of the rotated dimensions
  float eps = 0;
  const float* cosines = nullptr;  // [rows, half]
  const float* sines = nullptr;
  const float* query_norm = nullptr;  // [head_dim] or nullptr
  const float* key_norm = nullptr;
  float* qkv = nullptr;
  std::byte* keys = nullptr;
  std::byte* values = nullptr;
};
cudaError_t LaunchPrepare(const Launch& launch, Stored type, const PrepareArgs& args);

struct PrepareLatentArgs {
  Pages pages;
  int64_t rows = 0;
  int32_t heads = 0, nope_dim = 0, rope_dim = 0, latent_dim = 0;
  int64_t latent_bytes = 0;  // of a stored latent; the key lies behind it
  float eps = 0;
  const float* cosines = nullptr;  // [rows, rope_dim / 2]
  const float* sines = nullptr;
  const float* norm = nullptr;
  float* latents = nullptr;
  const float* queries = nullptr;
  float* plain_queries = nullptr;
  float* rotated_queries = nullptr;
  std::byte* stored = nullptr;
};
cudaError_t LaunchPrepareLatent(const Launch& launch, Stored type, const PrepareLatentArgs& args);

}  // namespace lockstep::kernels::cuda
