// What comes before attention: norms of heads and latents, rotations, and rows for the pages.
#include "runtime/kernels/cuda/attend.h"
#include "runtime/kernels/cuda/cached.cuh"
#include "runtime/kernels/cuda/start.cuh"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kPrepareWarps = 4;

// values = values * scale * weight, by a warp: squares in 32 lanes, lane = dimension mod 32.
__device__ inline void NormHead(float* values, const float* weight, float eps, int dim) {
  float squares = 0;
  for (int i = Lane(); i < dim; i += kWarp) squares = fmaf(values[i], values[i], squares);
  const float mean = WarpSum(squares) / static_cast<float>(dim);
  const float scale = 1 / sqrtf(mean + eps);
  for (int i = Lane(); i < dim; i += kWarp) values[i] = values[i] * scale * weight[i];
}

// The pair (from[a], from[b]) turned by one angle; each product is rounded.
__device__ inline void Turn(float c, float s, const float* from, int a, int b, float* to) {
  const float x = from[a], y = from[b];
  to[a] = x * c - y * s;
  to[b] = y * c + x * s;
}

__device__ inline int64_t StoredAt(const Pages& pages, int64_t row, int head) {
  const int32_t position = pages.positions[row];
  const int32_t* table = pages.block_tables[pages.sequences[row]];
  return table[position / pages.block_tokens] * pages.page_bytes + head * pages.head_bytes +
         position % pages.block_tokens * pages.row_bytes;
}

// Which of the items (row, one of `per_row`) a warp has; -1 beyond the last one.
__device__ inline int64_t WarpItem(int64_t items) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kPrepareWarps + WarpIndex();
  return item < items ? item : -1;
}

// A warp for each query, key and value of a row.
__global__ void PrepareHeads(PrepareArgs args, Stored type) {
  const int heads = args.query_heads + 2 * args.kv_heads;
  const int64_t item = WarpItem(args.rows * heads);
  if (item < 0) return;
  const int64_t row = item / heads;
  const int head = static_cast<int>(item % heads);
  float* values = args.qkv + item * args.head_dim;
  const int stored = head - args.query_heads;  // keys from 0 on, values behind them
  if (stored < args.kv_heads) {
    const float* norm = stored < 0 ? args.query_norm : args.key_norm;
    if (norm != nullptr) NormHead(values, norm, args.eps, args.head_dim);
    __syncwarp();
    for (int i = Lane(); i < args.half; i += kWarp) {
      const int64_t angle = row * args.half + i;
      Turn(args.cosines[angle], args.sines[angle], values, i, i + args.half, values);
    }
    __syncwarp();
  }
  if (stored < 0) return;
  const bool is_key = stored < args.kv_heads;
  std::byte* pages = is_key ? args.keys : args.values;
  const int kv_head = is_key ? stored : stored - args.kv_heads;
  StoreRow(type, values, args.head_dim, pages + StoredAt(args.pages, row, kv_head));
}

// A warp for the latent and the key of each row, and one for each query.
__global__ void PrepareLatents(PrepareLatentArgs args, Stored type) {
  const int64_t item = WarpItem(args.rows * (args.heads + 1));
  if (item < 0) return;
  const int64_t row = item / (args.heads + 1);
  const int head = static_cast<int>(item % (args.heads + 1));
  const int half = args.rope_dim / 2;
  const float* cosines = args.cosines + row * half;
  const float* sines = args.sines + row * half;
  if (head < args.heads) {
    const float* query = args.queries + (row * args.heads + head) * (args.nope_dim + args.rope_dim);
    float* plain = args.plain_queries + (head * args.rows + row) * args.nope_dim;
    float* rotated = args.rotated_queries + (head * args.rows + row) * args.rope_dim;
    for (int i = Lane(); i < args.nope_dim; i += kWarp) plain[i] = query[i];
    for (int i = Lane(); i < half; i += kWarp)
      Turn(cosines[i], sines[i], query + args.nope_dim, 2 * i, 2 * i + 1, rotated);
    return;
  }
  float* latent = args.latents + row * (args.latent_dim + args.rope_dim);
  float* key = latent + args.latent_dim;
  NormHead(latent, args.norm, args.eps, args.latent_dim);
  for (int i = Lane(); i < half; i += kWarp) Turn(cosines[i], sines[i], key, 2 * i, 2 * i + 1, key);
  __syncwarp();
  std::byte* to = args.stored + StoredAt(args.pages, row, 0);
  StoreRow(type, latent, args.latent_dim, to);
  StoreRow(type, key, args.rope_dim, to + args.latent_bytes);
}

int64_t WarpBlocks(int64_t items) { return (items + kPrepareWarps - 1) / kPrepareWarps; }

}  // namespace

cudaError_t LaunchPrepare(const Launch& launch, Stored type, const PrepareArgs& args) {
  const int64_t items = args.rows * (args.query_heads + 2 * args.kv_heads);
  return Start(launch, PrepareHeads, Grid(WarpBlocks(items)), kPrepareWarps * kWarp, 0, args, type);
}

cudaError_t LaunchPrepareLatent(const Launch& launch, Stored type, const PrepareLatentArgs& args) {
  const int64_t items = args.rows * (args.heads + 1);
  return Start(launch, PrepareLatents, Grid(WarpBlocks(items)), kPrepareWarps * kWarp, 0, args,
               type);
}

}  // namespace lockstep::kernels::cuda
