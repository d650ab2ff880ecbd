// The plain definition of attention: one position after the other, in double precision. It knows no
// chunks; how far those are from it is what the tests' tolerances say.
#include "runtime/kernels/ref/ref_attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <span>

namespace lockstep::kernels {
namespace {

// A row of the cache, decoded a piece at a time.
class StoredRow {
 public:
  StoredRow(CacheType type, const std::byte* row, int64_t dim)
      : type_(type), row_(row), dim_(dim) {}

  // f(index, value) for every value.
  template <typename F>
  void ForEach(const F& f) const {
    float values[kPiece];
    for (int64_t begin = 0; begin < dim_; begin += kPiece) {
      const int64_t count = std::min(kPiece, dim_ - begin);
      Decode(begin, count, values);
      for (int64_t i = 0; i < count; ++i) f(begin + i, values[i]);
    }
  }
  double Dot(const float* query) const {
    double sum = 0;
    ForEach([&](int64_t i, float value) { sum += double{query[i]} * value; });
    return sum;
  }

 private:
  static constexpr int64_t kPiece = 2 * kCacheBlock;

  void Decode(int64_t begin, int64_t count, float* values) const {
    const std::span<float> to(values, static_cast<size_t>(count));
    if (type_ != CacheType::kQ8) {
      DecodeCacheRow(type_, row_ + CacheRowBytes(type_, begin), to);
      return;
    }
    const std::byte* scales = row_ + CacheScalesAt(dim_);
    for (int64_t i = 0; i < count; ++i) {
      float scale;
      std::memcpy(&scale, scales + (begin + i) / kCacheBlock * 4, sizeof(scale));
      values[i] = static_cast<float>(static_cast<int8_t>(row_[begin + i])) * scale;
    }
  }

  CacheType type_;
  const std::byte* row_;
  int64_t dim_;
};

// Softmax over scores that come one by one, weighing values: what came before is scaled down when a
// higher score comes.
class Softmax {
 public:
  // `sums` has room for `dim` values.
  Softmax(double* sums, int64_t dim) : sums_(sums), dim_(dim) { std::fill_n(sums, dim, 0.0); }

  void Add(double score, const StoredRow& value) {
    if (score > highest_) {
      const double scale = std::exp(highest_ - score);
      for (int64_t i = 0; i < dim_; ++i) sums_[i] *= scale;
      total_ *= scale;
      highest_ = score;
    }
    const double weight = std::exp(score - highest_);
    total_ += weight;
    value.ForEach([&](int64_t i, float x) { sums_[i] += weight * x; });
  }
  void Write(float* out) const {
    for (int64_t i = 0; i < dim_; ++i) out[i] = static_cast<float>(sums_[i] / total_);
  }

 private:
  double* sums_;
  int64_t dim_;
  double highest_ = -std::numeric_limits<double>::infinity();
  double total_ = 0;
};

// A thread's part of the scratch: where chunks would wait is room for one head's sums.
template <typename Args>
double* SumsOf(const Args& args, int threads, int thread) {
  const AttentionScratch scratch = ScratchOf(args, threads);
  static_assert(kWaitingChunks * sizeof(float) >= sizeof(double));
  float* mine =
      args.scratch + scratch.chunks_at() + thread * kWaitingChunks * scratch.chunk_floats();
  return reinterpret_cast<double*>(mine);
}

// The pair (from[a], from[b]) turned by one angle.
void Turn(double c, double s, const float* from, int64_t a, int64_t b, float* to) {
  const double x = from[a], y = from[b];
  to[a] = static_cast<float>(x * c - y * s);
  to[b] = static_cast<float>(y * c + x * s);
}

void AttendHead(const AttentionArgs& args, int64_t row, int64_t head, double* sums) {
  const int64_t dim = args.head_dim;
  const int64_t width = (args.query_heads + 2 * args.kv_heads) * dim;
  const float* query = args.qkv + row * width + head * dim;
  const int64_t kv_head = (args.first_query_head + head) / args.group - args.first_kv_head;
  Softmax softmax(sums, dim);
  for (int64_t position = 0; position <= args.positions[row]; ++position) {
    const int64_t at = args.Offset(row, kv_head, position);
    const StoredRow key(args.cache_type, args.key_pages + at, dim);
    const StoredRow value(args.cache_type, args.value_pages + at, dim);
    softmax.Add(key.Dot(query) / std::sqrt(static_cast<double>(dim)), value);
  }
  softmax.Write(args.out + (row * args.query_heads + head) * dim);
}

void AttendHead(const LatentAttentionArgs& args, int64_t row, int64_t head, double* sums) {
  const int64_t query = head * args.rows + row;
  const float* absorbed = args.absorbed_queries + query * args.latent_dim;
  const float* rotated = args.rotated_queries + query * args.rope_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(args.nope_dim + args.rope_dim));
  Softmax softmax(sums, args.latent_dim);
  for (int64_t position = 0; position <= args.positions[row]; ++position) {
    const std::byte* stored = args.pages + args.Offset(row, position);
    const StoredRow latent(args.cache_type, stored, args.latent_dim);
    const StoredRow key(args.cache_type, stored + args.latent_bytes(), args.rope_dim);
    softmax.Add((latent.Dot(absorbed) + key.Dot(rotated)) * scale, latent);
  }
  softmax.Write(args.out + query * args.latent_dim);
}

template <typename Args>
void AttendAll(Queue& queue, const Args& args, int64_t heads) {
  const int threads = queue.pool->count();
  queue.pool->ParallelFor(args.rows * heads, 1, [&](int64_t begin, int64_t end, int thread) {
    double* sums = SumsOf(args, threads, thread);
    for (int64_t i = begin; i < end; ++i) AttendHead(args, i / heads, i % heads, sums);
  });
}

void Store(CacheType type, const float* values, int64_t count, std::byte* to) {
  EncodeCacheRow(type, {values, static_cast<size_t>(count)}, to);
}

}  // namespace

void RefNormRow(const float* x, const float* weight, double eps, int64_t dim, float* y) {
  double squares = 0;
  for (int64_t i = 0; i < dim; ++i) squares += double{x[i]} * x[i];
  const double scale = 1 / std::sqrt(squares / static_cast<double>(dim) + eps);
  for (int64_t i = 0; i < dim; ++i) y[i] = static_cast<float>(x[i] * scale * weight[i]);
}

void RefPrepareAttention(const AttentionArgs& args) {
  const int64_t dim = args.head_dim;
  const int64_t half = args.rotary_dim / 2;
  for (int64_t row = 0; row < args.rows; ++row) {
    float* heads = args.qkv + row * (args.query_heads + 2 * args.kv_heads) * dim;
    for (int64_t head = 0; head < args.query_heads + args.kv_heads; ++head) {
      float* values = heads + head * dim;
      const float* norm = head < args.query_heads ? args.query_norm : args.key_norm;
      if (norm != nullptr) RefNormRow(values, norm, args.eps, dim, values);
      for (int64_t i = 0; i < half; ++i) {
        Turn(args.cosines[row * half + i], args.sines[row * half + i], values, i, i + half, values);
      }
    }
    const float* keys = heads + args.query_heads * dim;
    for (int64_t head = 0; head < args.kv_heads; ++head) {
      const int64_t at = args.Offset(row, head, args.positions[row]);
      Store(args.cache_type, keys + head * dim, dim, args.key_pages + at);
      Store(args.cache_type, keys + (args.kv_heads + head) * dim, dim, args.value_pages + at);
    }
  }
}

void RefAttention(Queue& queue, const AttentionArgs& args) {
  AttendAll(queue, args, args.query_heads);
}

void RefPrepareLatentAttention(const LatentAttentionArgs& args) {
  const int64_t half = args.rope_dim / 2;
  const auto turn = [&](int64_t row, const float* from, float* to) {
    for (int64_t i = 0; i < half; ++i) {
      Turn(args.cosines[row * half + i], args.sines[row * half + i], from, 2 * i, 2 * i + 1, to);
    }
  };
  for (int64_t row = 0; row < args.rows; ++row) {
    float* latent = args.latents + row * (args.latent_dim + args.rope_dim);
    float* key = latent + args.latent_dim;
    RefNormRow(latent, args.latent_norm, args.eps, args.latent_dim, latent);
    turn(row, key, key);
    std::byte* to = args.pages + args.Offset(row, args.positions[row]);
    Store(args.cache_type, latent, args.latent_dim, to);
    Store(args.cache_type, key, args.rope_dim, to + args.latent_bytes());
    for (int64_t head = 0; head < args.heads; ++head) {
      const float* query =
          args.queries + (row * args.heads + head) * (args.nope_dim + args.rope_dim);
      const int64_t at = head * args.rows + row;
      std::copy_n(query, args.nope_dim, args.plain_queries + at * args.nope_dim);
      turn(row, query + args.nope_dim, args.rotated_queries + at * args.rope_dim);
    }
  }
}

void RefLatentAttention(Queue& queue, const LatentAttentionArgs& args) {
  AttendAll(queue, args, args.heads);
}

}  // namespace lockstep::kernels
