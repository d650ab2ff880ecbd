// Norm, rotation and storing of heads, and softmax attention of a few heads over one chunk of
// positions, whatever they are: queries against keys, or absorbed queries against latents. A tile
// keeps kHeads x kTokens sums in registers; whichever tile a head falls into, its sums run over the
// same lanes and positions in the same order, so tiles, threads and steps change the speed and
// never the bits.
#pragma once

#include "runtime/kernels/cpu/attention_rows.h"
#include "runtime/kernels/cpu/cached_inl.h"
#include "runtime/kernels/cpu/lanes.h"
#include "runtime/kernels/cpu/norm_inl.h"
#include "runtime/kernels/cpu/registers_inl.h"

namespace lockstep::kernels {
namespace {

// Sums that fit the registers, heads x tokens: 4 x 4 of one register each, 3 x 2 of two (of sixteen
// registers), 2 x 2 of four.
constexpr int kHeadTile = kParts == 1 ? 4 : kParts == 2 ? 3 : 2;
constexpr int kTokenTile = kParts == 1 ? 4 : 2;

void RotateHead(const AttentionArgs& args, int64_t row, float* head) {
  const int64_t half = args.rotary_dim / 2;
  const float* c = args.cosines + row * half;
  const float* s = args.sines + row * half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i];
    const float b = head[i + half];
    head[i] = a * c[i] - b * s[i];
    head[i + half] = b * c[i] + a * s[i];
  }
}

void PrepareRowImpl(const AttentionArgs& args, int64_t row) {
  const int64_t dim = args.head_dim;
  float* heads = args.qkv + row * (args.query_heads + 2 * args.kv_heads) * dim;
  for (int64_t head = 0; head < args.query_heads + args.kv_heads; ++head) {
    const float* norm = head < args.query_heads ? args.query_norm : args.key_norm;
    if (norm != nullptr)
      RmsNormImpl(heads + head * dim, norm, static_cast<float>(args.eps), dim, heads + head * dim);
    RotateHead(args, row, heads + head * dim);
  }
}

// Turns the neighbours (2i, 2i + 1).
inline void RotatePairs(const LatentAttentionArgs& args, int64_t row, const float* from,
                        float* to) {
  const int64_t half = args.rope_dim / 2;
  const float* c = args.cosines + row * half;
  const float* s = args.sines + row * half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = from[2 * i];
    const float b = from[2 * i + 1];
    to[2 * i] = a * c[i] - b * s[i];
    to[2 * i + 1] = b * c[i] + a * s[i];
  }
}

void PrepareLatentRowImpl(const LatentAttentionArgs& args, int64_t row) {
  float* latent = args.latents + row * (args.latent_dim + args.rope_dim);
  float* key = latent + args.latent_dim;
  RmsNormImpl(latent, args.latent_norm, static_cast<float>(args.eps), args.latent_dim, latent);
  RotatePairs(args, row, key, key);

  const int64_t head_dim = args.nope_dim + args.rope_dim;
  for (int64_t head = 0; head < args.heads; ++head) {
    const float* query = args.queries + (row * args.heads + head) * head_dim;
    const int64_t at = head * args.rows + row;
    std::memcpy(args.plain_queries + at * args.nope_dim, query,
                static_cast<size_t>(args.nope_dim) * sizeof(float));
    RotatePairs(args, row, query + args.nope_dim, args.rotated_queries + at * args.rope_dim);
  }
}

// Where heads stand in one of the two parts of a query, and the part of a position's row that they
// are multiplied with.
struct QueryPart {
  const float* first;
  int64_t stride;     // between heads
  int64_t dim;        // may be 0
  int64_t row_begin;  // bytes into a position's row
};

// AddProducts for sixteen dimensions, one register's lanes after the other's, so that operands need
// few registers.
template <CacheType kType, int kPart, int kHeads, int kTokens>
inline __attribute__((always_inline)) void AddLanes(const float* queries, int64_t query_stride,
                                                    const std::byte* rows, int64_t stride,
                                                    int64_t dim, int64_t i,
                                                    F32x16 (&sums)[kHeads][kTokens]) {
  if constexpr (kPart < kParts) {
    NativeF32 tokens[kTokens];
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const F32x16 token = LoadCached<kType>(rows + t * stride, dim, i);
      tokens[t] = Part<kPart>(token);
    }
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      const auto query = LoadNative<NativeF32>(queries + h * query_stride + i + kPart * kWidth);
#pragma GCC unroll 4
      for (int t = 0; t < kTokens; ++t) {
        NativeF32& sum = Part<kPart>(sums[h][t]);
        sum = FusedNative(query, tokens[t], sum);
      }
    }
    AddLanes<kType, kPart + 1>(queries, query_stride, rows, stride, dim, i, sums);
  }
}

// sums[h][t] += the products of query h and position t, lane by lane.
template <CacheType kType, int kHeads, int kTokens>
inline void AddProducts(const QueryPart& part, int64_t head, const std::byte* rows, int64_t stride,
                        F32x16 (&sums)[kHeads][kTokens]) {
  const float* queries = part.first + head * part.stride;
  rows += part.row_begin;
  int64_t i = 0;
  for (; i + kLanes <= part.dim; i += kLanes)
    AddLanes<kType, 0>(queries, part.stride, rows, stride, part.dim, i, sums);
  if (i == part.dim) return;
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const F32x16 token = LoadCachedPart<kType>(rows + t * stride, part.dim, i);
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) {
      sums[h][t] = Fused(LoadPart(queries + h * part.stride + i, part.dim - i), token, sums[h][t]);
    }
  }
}

// scores[h * kAttentionChunk + t] = scale * sums[h][t], each folded as SumLanes does.
template <int kHeads, int kTokens>
inline void StoreScores(const F32x16 (&sums)[kHeads][kTokens], float scale, float* scores) {
#if defined(__AVX512F__)
  if constexpr (kHeads == 4 && kTokens == 4) {
    StoreFourByFour(sums, scale, scores, kAttentionChunk);
    return;
  }
#endif
  constexpr int kSums = kHeads * kTokens;
  if constexpr (kSums < 4) {
    for (int i = 0; i < kSums; ++i)
      scores[i / kTokens * kAttentionChunk + i % kTokens] =
          SumLanes(sums[i / kTokens][i % kTokens]) * scale;
  } else {
    // Of the last four, those that are not there are the last one again.
    const auto sum = [&](int i) -> const F32x16& {
      const int at = i < kSums ? i : kSums - 1;
      return sums[at / kTokens][at % kTokens];
    };
#pragma GCC unroll 4
    for (int i = 0; i < kSums; i += 4) {
      const FourF32 four = SumLanes(sum(i), sum(i + 1), sum(i + 2), sum(i + 3)) * scale;
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const int at = i + j;
        if (at < kSums) scores[at / kTokens * kAttentionChunk + at % kTokens] = four[j];
      }
    }
  }
}

template <CacheType kType, int kHeads, int kTokens>
void ScoreTile(const ChunkPart& part, int64_t head, const std::byte* rows, float* scores) {
  F32x16 sums[kHeads][kTokens];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) sums[h][t] = Splat(0);
  }
  const QueryPart plain{part.queries, part.query_stride, part.dim, 0};
  AddProducts<kType, kHeads, kTokens>(plain, head, rows, part.row_bytes, sums);
  if (part.second_dim > 0) {
    const QueryPart second{part.second_queries, part.second_stride, part.second_dim,
                           part.second_at};
    AddProducts<kType, kHeads, kTokens>(second, head, rows, part.row_bytes, sums);
  }
  StoreScores<kHeads, kTokens>(sums, part.scale, scores);
}

// The scores of kHeads heads at the `count` positions of a page.
template <CacheType kType, int kHeads>
void ScorePage(const ChunkPart& part, int64_t head, const std::byte* page, int64_t count,
               float* scores) {
  int64_t t = 0;
  for (; t + kTokenTile <= count; t += kTokenTile) {
    ScoreTile<kType, kHeads, kTokenTile>(part, head, page + t * part.row_bytes, scores + t);
  }
  for (; t < count; ++t)
    ScoreTile<kType, kHeads, 1>(part, head, page + t * part.row_bytes, scores + t);
}

// sums[h][v] += weights[h] * value, one register's lanes after the other's.
template <CacheType kType, int kPart, int kHeads, int kVectors>
inline __attribute__((always_inline)) void AddValueLanes(const std::byte* row, int64_t dim,
                                                         int64_t i,
                                                         const NativeF32 (&weights)[kHeads],
                                                         F32x16 (&sums)[kHeads][kVectors]) {
  if constexpr (kPart < kParts) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const F32x16 all = LoadCached<kType>(row, dim, i + v * kLanes);
      const NativeF32 value = Part<kPart>(all);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        NativeF32& sum = Part<kPart>(sums[h][v]);
        sum = FusedNative(value, weights[h], sum);
      }
    }
    AddValueLanes<kType, kPart + 1>(row, dim, i, weights, sums);
  }
}

// weighted[h] += sum over the page's first `count` positions of weights[h] * value, kVectors times
// sixteen dimensions from `i` on.
template <CacheType kType, int kHeads, int kVectors>
inline void AddValues(const ChunkPart& part, const std::byte* page, int64_t count, int64_t i,
                      const float* weights, float* weighted) {
  F32x16 sums[kHeads][kVectors];
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      sums[h][v] = Load(weighted + h * part.value_dim + i + v * kLanes);
  }
  for (int64_t t = 0; t < count; ++t) {
    NativeF32 weight[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) weight[h] = weights[h * kAttentionChunk + t] - NativeF32{};
    AddValueLanes<kType, 0>(page + t * part.row_bytes, part.value_dim, i, weight, sums);
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      Store(sums[h][v], weighted + h * part.value_dim + i + v * kLanes);
  }
}

template <CacheType kType, int kHeads>
void AddPage(const ChunkPart& part, const std::byte* page, int64_t count, const float* weights,
             float* weighted) {
  const int64_t dim = part.value_dim;
  int64_t i = 0;
  for (; i + kTokenTile * kLanes <= dim; i += kTokenTile * kLanes)
    AddValues<kType, kHeads, kTokenTile>(part, page, count, i, weights, weighted);
  for (; i + kLanes <= dim; i += kLanes)
    AddValues<kType, kHeads, 1>(part, page, count, i, weights, weighted);
  if (i == dim) return;
  for (int h = 0; h < kHeads; ++h) {
    F32x16 sum = LoadPart(weighted + h * dim + i, dim - i);
    for (int64_t t = 0; t < count; ++t) {
      const F32x16 value = LoadCachedPart<kType>(page + t * part.row_bytes, dim, i);
      sum = Fused(value, Splat(weights[h * kAttentionChunk + t]), sum);
    }
    StorePart(sum, weighted + h * dim + i, dim - i);
  }
}

// Turns scores[0 .. count) into e^(score - maximum), zeros behind them up to a whole group of
// lanes.
inline void Exponentials(float* scores, int64_t count, float* maximum, float* sum) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = count; i < padded; ++i) scores[i] = -__builtin_inff();
  F32x16 highest = Load(scores);
  for (int64_t i = kLanes; i < padded; i += kLanes) highest = Max(highest, Load(scores + i));
  *maximum = MaxLanes(highest);
  const F32x16 top = Splat(*maximum);
  F32x16 total = Splat(0);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const F32x16 value = Exp(Load(scores + i) - top);
    total = total + value;
    Store(value, scores + i);
  }
  *sum = SumLanes(total);
}

// f(first position of a page, relative to the chunk; its positions; the page).
template <typename F>
inline void ForPages(const ChunkPart& part, const std::byte* pages, const F& f) {
  for (int64_t at = 0; at < part.count; at += part.block_tokens) {
    const int64_t left = part.count - at;
    const int64_t block = part.blocks[at / part.block_tokens];
    if (left > part.block_tokens) {
      // Pages lie apart, which the processor's own prefetcher does not follow.
      const std::byte* next = pages + part.blocks[at / part.block_tokens + 1] * part.page_bytes;
      for (int64_t line = 0; line < part.block_tokens * part.row_bytes; line += 64)
        __builtin_prefetch(next + line);
    }
    f(at, left < part.block_tokens ? left : part.block_tokens, pages + block * part.page_bytes);
  }
}

// f.template operator()<kHeads>(head) for tiles of heads.
template <typename F>
inline void ForHeads(int64_t heads, const F& f) {
  int64_t head = 0;
  for (; head + kHeadTile <= heads; head += kHeadTile) f.template operator()<kHeadTile>(head);
  for (; head + 2 <= heads; head += 2) f.template operator()<2>(head);
  for (; head < heads; ++head) f.template operator()<1>(head);
}

template <CacheType kType>
void AttendChunk(const ChunkPart& part) {
  ForPages(part, part.keys, [&](int64_t at, int64_t count, const std::byte* page) {
    ForHeads(part.heads, [&]<int kHeads>(int64_t head) {
      ScorePage<kType, kHeads>(part, head, page, count, part.scores + head * kAttentionChunk + at);
    });
  });
  float* ends = part.chunk + part.together * part.value_dim;
  for (int64_t head = 0; head < part.heads; ++head) {
    Exponentials(part.scores + head * kAttentionChunk, part.count, ends + 2 * head,
                 ends + 2 * head + 1);
  }
  std::memset(part.chunk, 0, static_cast<size_t>(part.heads * part.value_dim) * sizeof(float));
  ForPages(part, part.values, [&](int64_t at, int64_t count, const std::byte* page) {
    ForHeads(part.heads, [&]<int kHeads>(int64_t head) {
      AddPage<kType, kHeads>(part, page, count, part.scores + head * kAttentionChunk + at,
                             part.chunk + head * part.value_dim);
    });
  });
}

void AttendChunkImpl(const ChunkPart& part) {
  switch (part.type) {
    case CacheType::kF32:
      return AttendChunk<CacheType::kF32>(part);
    case CacheType::kBF16:
      return AttendChunk<CacheType::kBF16>(part);
    case CacheType::kF16:
      return AttendChunk<CacheType::kF16>(part);
    case CacheType::kQ8:
      return AttendChunk<CacheType::kQ8>(part);
  }
}

inline float FirstLane(const F32x16& lanes) {
  float part[kLanes];
  Store(lanes, part);
  return part[0];
}

// out = out * kept + chunk * added, with a group of lanes at a time.
inline void FoldValues(const float* chunk, const F32x16& kept, const F32x16& added, int64_t dim,
                       float* out) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes)
    Store(Fused(Load(chunk + i), added, Load(out + i) * kept), out + i);
  if (i == dim) return;
  const F32x16 last = LoadPart(out + i, dim - i) * kept;
  StorePart(Fused(LoadPart(chunk + i, dim - i), added, last), out + i, dim - i);
}

void FoldChunkImpl(const ChunkFold& fold) {
  if (fold.first) {
    std::memcpy(fold.out, fold.values, static_cast<size_t>(fold.dim) * sizeof(float));
    fold.state[0] = fold.ends[0];
    fold.state[1] = fold.ends[1];
  } else {
    const float highest = fold.ends[0] > fold.state[0] ? fold.ends[0] : fold.state[0];
    const F32x16 kept = Exp(Splat(fold.state[0] - highest));
    const F32x16 added = Exp(Splat(fold.ends[0] - highest));
    FoldValues(fold.values, kept, added, fold.dim, fold.out);
    fold.state[0] = highest;
    fold.state[1] = FirstLane(Fused(Splat(fold.ends[1]), added, Splat(fold.state[1]) * kept));
  }
  if (!fold.last) return;
  const float scale = 1.0f / fold.state[1];
  for (int64_t i = 0; i < fold.dim; ++i) fold.out[i] *= scale;
}

constexpr AttentionKernels MakeAttention() {
  return AttentionKernels{PrepareRowImpl, PrepareLatentRowImpl, AttendChunkImpl, FoldChunkImpl};
}

}  // namespace
}  // namespace lockstep::kernels
