// Sharing attention among threads. The unit of work is a chunk: one row's positions from one
// multiple of kAttentionChunk to the next, for the few heads that one thread computes together (a
// tile). Many rows: a thread takes whole tiles of rows and folds their chunks as it goes. Few long
// ones: the threads take neighbouring chunks, as many at a time as may wait, and fold them
// afterwards in the same order. Either way the same additions.
#include "runtime/kernels/cpu/attention_rows.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace lockstep::kernels {
namespace {

// Rows of a sequence whose chunks are computed one after the other, while keys and values are in
// the cache: so many that reading those costs little, so few that what they fold into stays there.
constexpr int64_t kRowsTogether = 32;

// Chunks that the threads compute between two folds, at most.
constexpr int64_t kMostWaiting = 256;

struct Chunk {
  int64_t row, tile, index;
};

struct Heads {
  int64_t first, count;
};

// What the two kinds of attention differ in.
class GroupedHeads {
 public:
  GroupedHeads(const AttentionArgs& args, const AttentionScratch&) : args_(args) {}
  int64_t tiles() const { return args_.kv_heads; }
  // The local query heads that read one local KV head.
  Heads HeadsOf(int64_t tile) const {
    const int64_t from = (args_.first_kv_head + tile) * args_.group - args_.first_query_head;
    const int64_t first = std::max<int64_t>(0, from);
    return {first, std::min(from + args_.group, args_.query_heads) - first};
  }
  // A head's place in `out` and among the folds.
  int64_t PlaceOf(int64_t row, int64_t head) const { return row * args_.query_heads + head; }
  ChunkPart PartOf(int64_t row, int64_t tile) const {
    ChunkPart part;
    const Heads heads = HeadsOf(tile);
    const int64_t width = (args_.query_heads + 2 * args_.kv_heads) * args_.head_dim;
    part.queries = args_.qkv + row * width + heads.first * args_.head_dim;
    part.query_stride = part.dim = args_.head_dim;
    part.scale = 1.0f / std::sqrt(static_cast<float>(args_.head_dim));
    part.heads = heads.count;
    const int64_t head_at = tile * args_.block_tokens * args_.row_bytes();
    part.keys = args_.key_pages + head_at;
    part.values = args_.value_pages + head_at;
    return part;
  }

 private:
  const AttentionArgs& args_;
};

class LatentTiles {
 public:
  LatentTiles(const LatentAttentionArgs& args, const AttentionScratch& scratch)
      : args_(args), together_(scratch.together) {}
  int64_t tiles() const { return (args_.heads + together_ - 1) / together_; }
  Heads HeadsOf(int64_t tile) const {
    const int64_t first = tile * together_;
    return {first, std::min(together_, args_.heads - first)};
  }
  int64_t PlaceOf(int64_t row, int64_t head) const { return head * args_.rows + row; }
  ChunkPart PartOf(int64_t row, int64_t tile) const {
    ChunkPart part;
    const Heads heads = HeadsOf(tile);
    const int64_t query = PlaceOf(row, heads.first);
    part.dim = args_.latent_dim;
    part.queries = args_.absorbed_queries + query * part.dim;
    part.query_stride = args_.rows * part.dim;
    part.second_dim = args_.rope_dim;
    part.second_queries = args_.rotated_queries + query * part.second_dim;
    part.second_stride = args_.rows * part.second_dim;
    part.second_at = args_.latent_bytes();
    part.scale = 1.0f / std::sqrt(static_cast<float>(args_.nope_dim + args_.rope_dim));
    part.heads = heads.count;
    part.keys = part.values = args_.pages;
    return part;
  }

 private:
  const LatentAttentionArgs& args_;
  const int64_t together_;
};

template <typename Args, typename Tiles>
class Attention {
 public:
  Attention(const AttentionKernels& kernels, Queue& queue, const Args& args)
      : kernels_(kernels),
        pool_(*queue.pool),
        args_(args),
        scratch_(ScratchOf(args, queue.pool->count())),
        tiles_(args, scratch_) {}

  void Run() {
    if (args_.rows == 0 || tiles_.tiles() == 0) return;
    int64_t longest = 0;
    for (int64_t row = 0; row < args_.rows; ++row) {
      row_chunks_ += ChunksOf(row);
      longest = std::max(longest, ChunksOf(row));
    }
    // Whole rows, unless the longest would keep one thread busy while others have nothing left.
    constexpr int64_t kFineEnough = 8;
    const int64_t threads = scratch_.threads;
    if (threads > 1 && longest * kFineEnough * threads > row_chunks_) {
      RunInTurns();
      return;
    }
    pool_.ParallelFor(threads, 1, [&](int64_t begin, int64_t end, int thread) {
      RunWholeRows(row_chunks_ * begin / threads, row_chunks_ * end / threads, thread);
    });
  }

 private:
  int64_t ChunksOf(int64_t row) const { return args_.positions[row] / kAttentionChunk + 1; }

  // Those rows whose first chunk is one of [begin, end), all rows' chunks counted.
  void RunWholeRows(int64_t begin, int64_t end, int thread) const {
    int64_t row = 0, at = 0;
    for (; row < args_.rows && at < begin; ++row) at += ChunksOf(row);
    int64_t last = row;
    for (; last < args_.rows && at < end; ++last) at += ChunksOf(last);
    while (row < last) {
      int64_t next = row + 1;
      while (next < std::min(last, row + kRowsTogether) &&
             args_.sequences[next] == args_.sequences[row])
        ++next;
      RunRows(row, next, thread);
      row = next;
    }
  }

  // Rows of one sequence. A chunk's keys and values stay in the cache for all of many rows, or for
  // all tiles that read them.
  void RunRows(int64_t begin, int64_t end, int thread) const {
    constexpr int64_t kMany = 8;
    const int64_t chunks = ChunksOf(end - 1);
    const int64_t tiles = tiles_.tiles();
    const bool many = end - begin >= kMany;
    for (int64_t i = 0; i < chunks * tiles; ++i) {
      const int64_t index = many ? i % chunks : i / tiles;
      const int64_t tile = many ? i / chunks : i % tiles;
      for (int64_t row = begin; row < end; ++row) {
        if (index >= ChunksOf(row)) continue;
        Compute({row, tile, index}, thread, thread);
        for (int64_t head = 0; head < tiles_.HeadsOf(tile).count; ++head)
          Fold({row, tile, index}, thread, head);
      }
    }
  }

  void RunInTurns() const {
    std::array<Chunk, kMostWaiting> turn;
    const int64_t most = std::min(kMostWaiting, scratch_.threads * kWaitingChunks);
    int64_t count = 0;
    const auto finish = [&] {
      pool_.ParallelFor(count, 1, [&](int64_t begin, int64_t end, int thread) {
        for (int64_t i = begin; i < end; ++i) Compute(turn[static_cast<size_t>(i)], i, thread);
      });
      pool_.ParallelFor(scratch_.together, 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t i = 0; i < count; ++i) {
          const Chunk& chunk = turn[static_cast<size_t>(i)];
          const int64_t heads = tiles_.HeadsOf(chunk.tile).count;
          for (int64_t head = begin; head < std::min(end, heads); ++head) Fold(chunk, i, head);
        }
      });
      count = 0;
    };
    for (int64_t row = 0; row < args_.rows; ++row) {
      for (int64_t index = 0; index < ChunksOf(row); ++index) {
        for (int64_t tile = 0; tile < tiles_.tiles(); ++tile) {
          turn[static_cast<size_t>(count++)] = {row, tile, index};
          if (count == most) finish();
        }
      }
    }
    if (count > 0) finish();
  }

  float* WaitingChunk(int64_t slot) const {
    return args_.scratch + scratch_.chunks_at() + slot * scratch_.chunk_floats();
  }

  void Compute(const Chunk& chunk, int64_t slot, int thread) const {
    ChunkPart part = tiles_.PartOf(chunk.row, chunk.tile);
    const int64_t first = chunk.index * kAttentionChunk;
    part.type = args_.cache_type;
    part.together = scratch_.together;
    part.value_dim = scratch_.value_dim;
    part.count = std::min(kAttentionChunk, args_.positions[chunk.row] + 1 - first);
    part.block_tokens = args_.block_tokens;
    part.blocks = args_.block_tables[args_.sequences[chunk.row]] + first / args_.block_tokens;
    part.page_bytes = args_.page_bytes();
    part.row_bytes = args_.row_bytes();
    part.scores = args_.scratch + thread * scratch_.together * kAttentionChunk;
    part.chunk = WaitingChunk(slot);
    kernels_.attend_chunk(part);
  }

  // `head` counts within the tile.
  void Fold(const Chunk& chunk, int64_t slot, int64_t head) const {
    const int64_t place = tiles_.PlaceOf(chunk.row, tiles_.HeadsOf(chunk.tile).first + head);
    const float* waiting = WaitingChunk(slot);
    ChunkFold fold;
    fold.first = chunk.index == 0;
    fold.last = chunk.index + 1 == ChunksOf(chunk.row);
    fold.dim = scratch_.value_dim;
    fold.values = waiting + head * fold.dim;
    fold.ends = waiting + scratch_.together * fold.dim + 2 * head;
    fold.out = args_.out + place * fold.dim;
    fold.state = args_.scratch + scratch_.folds_at() + 2 * place;
    kernels_.fold_chunk(fold);
  }

  const AttentionKernels& kernels_;
  ThreadPool& pool_;
  const Args& args_;
  const AttentionScratch scratch_;
  const Tiles tiles_;
  int64_t row_chunks_ = 0;  // of all rows
};

std::span<const float> Values(const float* from, int64_t count) {
  return {from, static_cast<size_t>(count)};
}

}  // namespace

void PrepareRows(const AttentionKernels& kernels, Queue& queue, const AttentionArgs& args) {
  const int64_t dim = args.head_dim;
  const int64_t width = (args.query_heads + 2 * args.kv_heads) * dim;
  queue.pool->ParallelFor(args.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      kernels.prepare_row(args, row);
      const float* keys = args.qkv + row * width + args.query_heads * dim;
      const float* values = keys + args.kv_heads * dim;
      for (int64_t head = 0; head < args.kv_heads; ++head) {
        const int64_t at = args.Offset(row, head, args.positions[row]);
        EncodeCacheRow(args.cache_type, Values(keys + head * dim, dim), args.key_pages + at);
        EncodeCacheRow(args.cache_type, Values(values + head * dim, dim), args.value_pages + at);
      }
    }
  });
}

void PrepareRows(const AttentionKernels& kernels, Queue& queue, const LatentAttentionArgs& args) {
  queue.pool->ParallelFor(args.rows, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t row = begin; row < end; ++row) {
      kernels.prepare_latent_row(args, row);
      const float* latent = args.latents + row * (args.latent_dim + args.rope_dim);
      std::byte* to = args.pages + args.Offset(row, args.positions[row]);
      EncodeCacheRow(args.cache_type, Values(latent, args.latent_dim), to);
      EncodeCacheRow(args.cache_type, Values(latent + args.latent_dim, args.rope_dim),
                     to + args.latent_bytes());
    }
  });
}

void Attend(const AttentionKernels& kernels, Queue& queue, const AttentionArgs& args) {
  Attention<AttentionArgs, GroupedHeads>(kernels, queue, args).Run();
}

void Attend(const AttentionKernels& kernels, Queue& queue, const LatentAttentionArgs& args) {
  Attention<LatentAttentionArgs, LatentTiles>(kernels, queue, args).Run();
}

}  // namespace lockstep::kernels
