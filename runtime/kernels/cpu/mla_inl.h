// Latent attention: norm, rotation and storing of a token's latent, and causal attention of a few
// heads over the paged latents. A tile keeps kHeads x kTokens sums in registers; whichever tile a
// head falls into, its sums run over the same lanes and absolute positions in the same order, so
// tiles, threads and chunks change the speed and never the bits.
#pragma once

#include "runtime/kernels/cpu/attention_inl.h"
#include "runtime/kernels/cpu/kernel_table.h"
#include "runtime/kernels/cpu/lanes.h"

namespace lockstep::kernels {
namespace {

// Sums that fit the registers: 4 x 4 of sixteen lanes, or 2 x 2 of two or four registers each.
constexpr int kLatentTile = kParts == 1 ? 4 : 2;

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

// The page of the block that holds a position of the row's sequence.
inline float* LatentPage(const LatentAttentionArgs& args, int64_t row, int64_t position) {
  const int64_t block = args.block_tables[args.sequences[row]][position / args.block_tokens];
  return args.pages + block * args.block_tokens * (args.latent_dim + args.rope_dim);
}

void PrepareLatentRowImpl(const LatentAttentionArgs& args, int64_t row) {
  const int64_t width = args.latent_dim + args.rope_dim;
  const int64_t position = args.positions[row];
  const float* projected = args.latents + row * width;
  float* stored = LatentPage(args, row, position) + position % args.block_tokens * width;
  RmsNormImpl(projected, args.latent_norm, static_cast<float>(args.eps), args.latent_dim, stored);
  RotatePairs(args, row, projected + args.latent_dim, stored + args.latent_dim);

  const int64_t head_dim = args.nope_dim + args.rope_dim;
  for (int64_t head = 0; head < args.heads; ++head) {
    const float* query = args.queries + (row * args.heads + head) * head_dim;
    const int64_t at = head * args.rows + row;
    std::memcpy(args.plain_queries + at * args.nope_dim, query,
                static_cast<size_t>(args.nope_dim) * sizeof(float));
    RotatePairs(args, row, query + args.nope_dim, args.rotated_queries + at * args.rope_dim);
  }
}

// sums[h][t] += the products of query h and token t, lane by lane.
template <int kHeads, int kTokens>
inline void AddProducts(const float* const (&queries)[kHeads], const float* tokens, int64_t stride,
                        int64_t dim, F32x16 (&sums)[kHeads][kTokens]) {
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    F32x16 query[kHeads];
#pragma GCC unroll 4
    for (int h = 0; h < kHeads; ++h) query[h] = Load(queries[h] + i);
#pragma GCC unroll 4
    for (int t = 0; t < kTokens; ++t) {
      const F32x16 token = Load(tokens + t * stride + i);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) sums[h][t] = MulAdd(query[h], token, sums[h][t]);
    }
  }
  if (i == dim) return;
  for (int t = 0; t < kTokens; ++t) {
    const F32x16 token = LoadPart(tokens + t * stride + i, dim - i);
    for (int h = 0; h < kHeads; ++h) {
      sums[h][t] = MulAdd(LoadPart(queries[h] + i, dim - i), token, sums[h][t]);
    }
  }
}

template <int kHeads, int kTokens>
void ScoreTile(const LatentAttentionArgs& args, int64_t first_query, const float* tokens,
               float* scores) {
  const float* absorbed[kHeads];
  const float* rotated[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    const int64_t query = first_query + h * args.rows;
    absorbed[h] = args.absorbed_queries + query * args.latent_dim;
    rotated[h] = args.rotated_queries + query * args.rope_dim;
  }
  F32x16 sums[kHeads][kTokens];
  for (int h = 0; h < kHeads; ++h) {
    for (int t = 0; t < kTokens; ++t) sums[h][t] = Splat(0);
  }
  const int64_t stride = args.latent_dim + args.rope_dim;
  AddProducts<kHeads, kTokens>(absorbed, tokens, stride, args.latent_dim, sums);
  AddProducts<kHeads, kTokens>(rotated, tokens + args.latent_dim, stride, args.rope_dim, sums);
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(args.nope_dim + args.rope_dim));
  for (int h = 0; h < kHeads; ++h) {
    for (int t = 0; t < kTokens; ++t) {
      scores[h * args.score_stride + t] = SumLanes(sums[h][t]) * scale;
    }
  }
}

// out[h] += sum over the first `count` tokens of probability[h] * latent.
template <int kHeads>
void AddLatents(const LatentAttentionArgs& args, int64_t first_query, const float* tokens,
                int64_t count, const float* probabilities) {
  const int64_t stride = args.latent_dim + args.rope_dim;
  float* out = args.out + first_query * args.latent_dim;
  const int64_t out_stride = args.rows * args.latent_dim;
  for (int64_t i = 0; i < args.latent_dim; i += kLanes) {
    const int64_t rest = args.latent_dim - i;
    const bool whole = rest >= kLanes;
    F32x16 sums[kHeads];
    for (int h = 0; h < kHeads; ++h) {
      const float* from = out + h * out_stride + i;
      sums[h] = whole ? Load(from) : LoadPart(from, rest);
    }
    for (int64_t t = 0; t < count; ++t) {
      const float* from = tokens + t * stride + i;
      const F32x16 latent = whole ? Load(from) : LoadPart(from, rest);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        sums[h] = MulAdd(latent, Splat(probabilities[h * args.score_stride + t]), sums[h]);
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      float* to = out + h * out_stride + i;
      if (whole) {
        Store(sums[h], to);
      } else {
        StorePart(sums[h], to, rest);
      }
    }
  }
}

// kHeads neighbouring heads of one row.
template <int kHeads>
void AttendLatentTile(const LatentAttentionArgs& args, int64_t row, int64_t head, float* scores) {
  const int64_t count = args.positions[row] + 1;
  const int64_t stride = args.latent_dim + args.rope_dim;
  const int64_t query = head * args.rows + row;
  for (int64_t begin = 0; begin < count; begin += args.block_tokens) {
    const float* page = LatentPage(args, row, begin);
    const int64_t here = count - begin < args.block_tokens ? count - begin : args.block_tokens;
    int64_t t = 0;
    for (; t + kLatentTile <= here; t += kLatentTile) {
      ScoreTile<kHeads, kLatentTile>(args, query, page + t * stride, scores + begin + t);
    }
    for (; t < here; ++t) ScoreTile<kHeads, 1>(args, query, page + t * stride, scores + begin + t);
  }
  for (int h = 0; h < kHeads; ++h) {
    Softmax(scores + h * args.score_stride, count);
    std::memset(args.out + (query + h * args.rows) * args.latent_dim, 0,
                static_cast<size_t>(args.latent_dim) * sizeof(float));
  }
  for (int64_t begin = 0; begin < count; begin += args.block_tokens) {
    const int64_t here = count - begin < args.block_tokens ? count - begin : args.block_tokens;
    AddLatents<kHeads>(args, query, LatentPage(args, row, begin), here, scores + begin);
  }
}

// Heads [head, head + count) of one row; count is at most kLatentHeads.
void AttendLatentImpl(const LatentAttentionArgs& args, int64_t row, int64_t head, int64_t count,
                      float* scores) {
  for (; count >= kLatentTile; count -= kLatentTile, head += kLatentTile) {
    AttendLatentTile<kLatentTile>(args, row, head, scores);
  }
  for (; count > 0; --count, ++head) AttendLatentTile<1>(args, row, head, scores);
}

}  // namespace
}  // namespace lockstep::kernels
