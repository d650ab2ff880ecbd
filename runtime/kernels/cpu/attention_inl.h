// Norm, rotation and storing of heads, and causal attention over paged keys and values. A head's
// sums run over absolute positions, sixteen at a time, so a prompt cut into other chunks gives the
// same bits.
#pragma once

#include "runtime/kernels/cpu/kernel_table.h"
#include "runtime/kernels/cpu/lanes.h"

namespace lockstep::kernels {
namespace {

void RmsNormImpl(const float* x, const float* weight, float eps, int64_t dim, float* y) {
  F32x16 squares = Splat(0);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) squares = MulAdd(Load(x + i), Load(x + i), squares);
  const F32x16 rest = LoadPart(x + i, dim - i);
  squares = MulAdd(rest, rest, squares);
  const float scale = 1.0f / __builtin_sqrtf(SumLanes(squares) / static_cast<float>(dim) + eps);
  for (i = 0; i + kLanes <= dim; i += kLanes) Store(Load(x + i) * scale * Load(weight + i), y + i);
  const F32x16 last = LoadPart(x + i, dim - i) * scale * LoadPart(weight + i, dim - i);
  StorePart(last, y + i, dim - i);
}

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

// First element of a block's page for one local KV head.
inline int64_t PageOffset(const AttentionArgs& args, int64_t block, int64_t head) {
  return (block * args.kv_heads + head) * args.block_tokens * args.head_dim;
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
  const int64_t position = args.positions[row];
  const int64_t block = args.block_tables[args.sequences[row]][position / args.block_tokens];
  const float* keys = heads + args.query_heads * dim;
  for (int64_t head = 0; head < args.kv_heads; ++head) {
    const int64_t at = PageOffset(args, block, head) + position % args.block_tokens * dim;
    const auto bytes = static_cast<size_t>(dim) * sizeof(float);
    std::memcpy(args.key_pages + at, keys + head * dim, bytes);
    std::memcpy(args.value_pages + at, keys + (args.kv_heads + head) * dim, bytes);
  }
}

inline float Dot(const float* a, const float* b, int64_t dim) {
  F32x16 sum = Splat(0);
  int64_t i = 0;
  for (; i + kLanes <= dim; i += kLanes) sum = MulAdd(Load(a + i), Load(b + i), sum);
  if (i < dim) sum = MulAdd(LoadPart(a + i, dim - i), LoadPart(b + i, dim - i), sum);
  return SumLanes(sum);
}

// Turns scores[0 .. count) into probabilities; the tail up to a whole group of lanes is set to
// zero.
inline void Softmax(float* scores, int64_t count) {
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = count; i < padded; ++i) scores[i] = -__builtin_inff();
  F32x16 highest = Load(scores);
  for (int64_t i = kLanes; i < padded; i += kLanes) highest = Max(highest, Load(scores + i));
  const F32x16 top = Splat(MaxLanes(highest));
  F32x16 sum = Splat(0);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const F32x16 value = Exp(Load(scores + i) - top);
    sum = sum + value;
    Store(value, scores + i);
  }
  const float scale = 1.0f / SumLanes(sum);
  for (int64_t i = 0; i < padded; i += kLanes) Store(Load(scores + i) * scale, scores + i);
}

// out += sum over the page's first `count` positions of p[position] * values[position].
inline void AddWeighted(const float* p, const float* values, int64_t count, int64_t dim,
                        float* out) {
  int64_t i = 0;
  for (; i + 4 * kLanes <= dim; i += 4 * kLanes) {
    F32x16 sums[4] = {Load(out + i), Load(out + i + 16), Load(out + i + 32), Load(out + i + 48)};
    for (int64_t position = 0; position < count; ++position) {
      const float* from = values + position * dim + i;
#pragma GCC unroll 4
      for (int lane = 0; lane < 4; ++lane) {
        sums[lane] = MulAdd(Load(from + lane * kLanes), Splat(p[position]), sums[lane]);
      }
    }
    for (int lane = 0; lane < 4; ++lane) Store(sums[lane], out + i + lane * kLanes);
  }
  for (; i < dim; i += kLanes) {
    const int64_t width = dim - i < kLanes ? dim - i : kLanes;
    F32x16 sum = LoadPart(out + i, width);
    for (int64_t position = 0; position < count; ++position) {
      sum = MulAdd(LoadPart(values + position * dim + i, width), Splat(p[position]), sum);
    }
    StorePart(sum, out + i, width);
  }
}

// All local query heads that read one local KV head, for one row.
void AttendImpl(const AttentionArgs& args, int64_t row, int64_t kv_head, float* scores) {
  const int64_t dim = args.head_dim;
  const int64_t global_kv_head = args.first_kv_head + kv_head;
  int64_t first = global_kv_head * args.group - args.first_query_head;
  int64_t last = first + args.group;
  if (first < 0) first = 0;
  if (last > args.query_heads) last = args.query_heads;
  const float* queries = args.qkv + row * (args.query_heads + 2 * args.kv_heads) * dim;
  float* out = args.out + row * args.query_heads * dim;
  const int64_t count = args.positions[row] + 1;
  const int32_t* table = args.block_tables[args.sequences[row]];
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(dim));
  for (int64_t begin = 0; begin < count; begin += args.block_tokens) {
    const float* keys =
        args.key_pages + PageOffset(args, table[begin / args.block_tokens], kv_head);
    const int64_t here = count - begin < args.block_tokens ? count - begin : args.block_tokens;
    for (int64_t head = first; head < last; ++head) {
      float* to = scores + (head - first) * args.score_stride + begin;
      for (int64_t i = 0; i < here; ++i)
        to[i] = Dot(queries + head * dim, keys + i * dim, dim) * scale;
    }
  }
  for (int64_t head = first; head < last; ++head) {
    Softmax(scores + (head - first) * args.score_stride, count);
    std::memset(out + head * dim, 0, static_cast<size_t>(dim) * sizeof(float));
  }
  for (int64_t begin = 0; begin < count; begin += args.block_tokens) {
    const float* values =
        args.value_pages + PageOffset(args, table[begin / args.block_tokens], kv_head);
    const int64_t here = count - begin < args.block_tokens ? count - begin : args.block_tokens;
    for (int64_t head = first; head < last; ++head) {
      AddWeighted(scores + (head - first) * args.score_stride + begin, values, here, dim,
                  out + head * dim);
    }
  }
}

}  // namespace
}  // namespace lockstep::kernels
