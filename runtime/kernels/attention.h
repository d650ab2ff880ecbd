// What attention works on: the heads of one step on this rank and the KV pages of one layer.
//
// Softmax has one specified shape: positions are cut into chunks of kAttentionChunk, at absolute
// multiples; a chunk gives its maximum, the sum of its exponentials, and the values weighted by
// them; a row folds its chunks from first to last. So a row's result does not depend on which
// thread computed which chunk. (docs/numerics.md)
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/kernels/cache_row.h"

namespace lockstep::kernels {

inline constexpr int64_t kAttentionChunk = 256;

// Heads of latent attention that one thread computes together: few, so that all threads have some
// of a single row; of many rows more, since all heads read the same latents, and a chunk of them is
// larger than a core's second-level cache.
constexpr int64_t LatentHeads(int64_t rows, int64_t threads) { return rows < 4 * threads ? 4 : 20; }

// Chunks that may wait to be folded, for each thread.
inline constexpr int64_t kWaitingChunks = 4;

// How the memory behind `scratch` is divided, sized once for the largest step: scores, chunks that
// wait to be folded, and the maximum and sum so far of every row and head.
struct AttentionScratch {
  int64_t rows = 0;
  int64_t heads = 0;      // of this rank
  int64_t together = 1;   // heads that one thread computes together
  int64_t value_dim = 0;  // of what a head gives
  int64_t threads = 1;

  // Floats of a chunk that waits: [together, value_dim] weighted values, then [together, 2] maximum
  // and sum.
  int64_t chunk_floats() const { return (together * (value_dim + 2) + 15) / 16 * 16; }
  int64_t chunks_at() const { return threads * together * kAttentionChunk; }
  int64_t folds_at() const { return chunks_at() + threads * kWaitingChunks * chunk_floats(); }
  int64_t floats() const { return folds_at() + rows * heads * 2; }
};

// A page holds block_tokens positions of one block for all local KV heads: [kv_heads][block_tokens]
// rows of head_dim values in cache_type's format.
struct AttentionArgs {
  int64_t rows = 0;
  int64_t query_heads = 0;       // local ones
  int64_t kv_heads = 0;          // local ones
  int64_t first_query_head = 0;  // global index of the first local query head
  int64_t first_kv_head = 0;     // global index of the first local KV head
  int64_t group = 1;             // query heads per KV head
  int64_t head_dim = 0;
  int64_t rotary_dim = 0;
  int64_t block_tokens = 0;
  double eps = 0;
  CacheType cache_type = CacheType::kF32;
  const int32_t* positions = nullptr;            // [rows]
  const int32_t* sequences = nullptr;            // [rows] index into block_tables
  const int32_t* const* block_tables = nullptr;  // per sequence: its blocks
  const float* cosines = nullptr;                // [rows, rotary_dim / 2]
  const float* sines = nullptr;                  // [rows, rotary_dim / 2]
  const float* query_norm = nullptr;             // [head_dim], nullptr: none
  const float* key_norm = nullptr;               // [head_dim], nullptr: none
  float* qkv = nullptr;  // [rows, (query_heads + 2 kv_heads) * head_dim]: queries, keys, values
  std::byte* key_pages = nullptr;    // [blocks] pages
  std::byte* value_pages = nullptr;  // same
  float* scratch = nullptr;          // [ScratchOf(...).floats()], 64-byte aligned
  float* out = nullptr;              // [rows, query_heads * head_dim]

  int64_t row_bytes() const { return CacheRowBytes(cache_type, head_dim); }
  int64_t page_bytes() const { return kv_heads * block_tokens * row_bytes(); }
  // Where a position of row `row`'s sequence lies in the pages, for local KV head `head`.
  int64_t Offset(int64_t row, int64_t head, int64_t position) const {
    const int64_t block = block_tables[sequences[row]][position / block_tokens];
    return block * page_bytes() + (head * block_tokens + position % block_tokens) * row_bytes();
  }
};

// Latent attention (MLA) with absorbed weights: all heads read one latent and one rotated key a
// token. A page holds one position after the other: a row of latent_dim values, then one of
// rope_dim. What a head owns is head-major, [heads, rows, n]: one group of rows for each matrix of
// a stack.
struct LatentAttentionArgs {
  int64_t rows = 0;
  int64_t heads = 0;       // local ones
  int64_t nope_dim = 0;    // plain dimensions of a query
  int64_t rope_dim = 0;    // rotated dimensions behind them
  int64_t latent_dim = 0;  // of the latent
  int64_t block_tokens = 0;
  double eps = 0;  // of the latent's norm
  CacheType cache_type = CacheType::kF32;
  const int32_t* positions = nullptr;            // [rows]
  const int32_t* sequences = nullptr;            // [rows] index into block_tables
  const int32_t* const* block_tables = nullptr;  // per sequence: its blocks
  const float* cosines = nullptr;                // [rows, rope_dim / 2]
  const float* sines = nullptr;                  // [rows, rope_dim / 2]
  const float* latent_norm = nullptr;            // [latent_dim]
  float* latents = nullptr;          // [rows, latent_dim + rope_dim] as projected; changed in place
  const float* queries = nullptr;    // [rows, heads, nope_dim + rope_dim] as projected
  float* plain_queries = nullptr;    // [heads, rows, nope_dim]
  float* rotated_queries = nullptr;  // [heads, rows, rope_dim]
  const float* absorbed_queries = nullptr;  // [heads, rows, latent_dim]
  std::byte* pages = nullptr;               // [blocks] pages
  float* scratch = nullptr;                 // [ScratchOf(...).floats()], 64-byte aligned
  float* out = nullptr;                     // [heads, rows, latent_dim]

  int64_t latent_bytes() const { return CacheRowBytes(cache_type, latent_dim); }
  int64_t row_bytes() const { return latent_bytes() + CacheRowBytes(cache_type, rope_dim); }
  int64_t page_bytes() const { return block_tokens * row_bytes(); }
  // Where a position of row `row`'s sequence lies in the pages.
  int64_t Offset(int64_t row, int64_t position) const {
    const int64_t block = block_tables[sequences[row]][position / block_tokens];
    return block * page_bytes() + position % block_tokens * row_bytes();
  }
};

// The scratch of attention with these heads; the memory is sized with the rows of the largest step.
inline AttentionScratch ScratchOf(const AttentionArgs& args, int64_t threads) {
  return {args.rows, args.query_heads, args.group, args.head_dim, threads};
}
inline AttentionScratch ScratchOf(const LatentAttentionArgs& args, int64_t threads) {
  return {args.rows, args.heads, LatentHeads(args.rows, threads), args.latent_dim, threads};
}

}  // namespace lockstep::kernels
