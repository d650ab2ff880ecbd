// The plain definition of latent attention: sequential sums in double precision.
#include "runtime/kernels/ref/ref_mla.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace lockstep::kernels {
namespace {

int64_t Width(const LatentAttentionArgs& args) { return args.latent_dim + args.rope_dim; }

// The latent and the rotated key of a position of the row's sequence.
float* Stored(const LatentAttentionArgs& args, int64_t row, int64_t position) {
  const int64_t block = args.block_tables[args.sequences[row]][position / args.block_tokens];
  return args.pages + (block * args.block_tokens + position % args.block_tokens) * Width(args);
}

void Rotate(const LatentAttentionArgs& args, int64_t row, const float* from, float* to) {
  const int64_t half = args.rope_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const double c = args.cosines[row * half + i];
    const double s = args.sines[row * half + i];
    const double a = from[2 * i];
    const double b = from[2 * i + 1];
    to[2 * i] = static_cast<float>(a * c - b * s);
    to[2 * i + 1] = static_cast<float>(b * c + a * s);
  }
}

double Dot(const float* a, const float* b, int64_t dim) {
  double sum = 0;
  for (int64_t i = 0; i < dim; ++i) sum += double{a[i]} * b[i];
  return sum;
}

void AttendHead(const LatentAttentionArgs& args, int64_t row, int64_t head, float* scores) {
  const int64_t query = head * args.rows + row;
  const float* absorbed = args.absorbed_queries + query * args.latent_dim;
  const float* rotated = args.rotated_queries + query * args.rope_dim;
  const double scale = 1 / std::sqrt(static_cast<double>(args.nope_dim + args.rope_dim));
  const int64_t last = args.positions[row];
  double highest = -std::numeric_limits<double>::infinity();
  for (int64_t position = 0; position <= last; ++position) {
    const float* stored = Stored(args, row, position);
    const double dot = Dot(absorbed, stored, args.latent_dim) +
                       Dot(rotated, stored + args.latent_dim, args.rope_dim);
    scores[position] = static_cast<float>(dot * scale);
    highest = std::max(highest, double{scores[position]});
  }
  double sum = 0;
  for (int64_t position = 0; position <= last; ++position)
    sum += std::exp(scores[position] - highest);
  for (int64_t i = 0; i < args.latent_dim; ++i) {
    double value = 0;
    for (int64_t position = 0; position <= last; ++position) {
      value += std::exp(scores[position] - highest) * Stored(args, row, position)[i];
    }
    args.out[query * args.latent_dim + i] = static_cast<float>(value / sum);
  }
}

}  // namespace

void RefPrepareLatentAttention(const LatentAttentionArgs& args) {
  for (int64_t row = 0; row < args.rows; ++row) {
    const float* projected = args.latents + row * Width(args);
    float* stored = Stored(args, row, args.positions[row]);
    const double squares = Dot(projected, projected, args.latent_dim);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(args.latent_dim) + args.eps);
    for (int64_t i = 0; i < args.latent_dim; ++i) {
      stored[i] = static_cast<float>(projected[i] * scale * args.latent_norm[i]);
    }
    Rotate(args, row, projected + args.latent_dim, stored + args.latent_dim);
    for (int64_t head = 0; head < args.heads; ++head) {
      const float* query =
          args.queries + (row * args.heads + head) * (args.nope_dim + args.rope_dim);
      const int64_t at = head * args.rows + row;
      std::copy_n(query, args.nope_dim, args.plain_queries + at * args.nope_dim);
      Rotate(args, row, query + args.nope_dim, args.rotated_queries + at * args.rope_dim);
    }
  }
}

void RefLatentAttention(Queue& queue, const LatentAttentionArgs& args) {
  queue.pool->ParallelFor(args.rows * args.heads, 1, [&](int64_t begin, int64_t end, int thread) {
    float* scores = args.scores + thread * kLatentHeads * args.score_stride;
    for (int64_t i = begin; i < end; ++i) AttendHead(args, i / args.heads, i % args.heads, scores);
  });
}

}  // namespace lockstep::kernels
