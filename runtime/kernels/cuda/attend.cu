// Attention: chunks of contexts, and their folds.
#include "runtime/kernels/cuda/attend.h"
#include "runtime/kernels/cuda/cached.cuh"
#include "runtime/kernels/cuda/start.cuh"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kAttendThreads = kChunk;  // one for each position of a chunk
constexpr int kAttendWarps = kAttendThreads / kWarp;
constexpr int kHeadsOfUnit = 3;  // that a warp weighs values for at once
constexpr int kDimsOfUnit = 2 * kWarp;

__host__ __device__ constexpr int RoundUp(int dim) { return (dim + 3) / 4 * 4; }
__host__ __device__ inline int QueryFloats(const AttendArgs& args) {
  return RoundUp(args.parts[0].dim) + RoundUp(args.parts[1].dim);
}
// Queries of the heads, their scores, and where the chunk's positions lie.
size_t AttendShared(const AttendArgs& args) {
  return kHeadsTogether * (static_cast<size_t>(QueryFloats(args)) + kChunk) * sizeof(float) +
         kChunk * sizeof(int64_t);
}

// What a block of threads works on.
struct Chunk {
  int row, slot, kv_head;
  int first_head, heads;  // together
  int begin, count;       // positions
  float* queries;         // [kHeadsTogether][QueryFloats]
  float* scores;          // [kHeadsTogether][kChunk]
  int64_t* offsets;       // [kChunk]
};

// Of the block's index; no heads where there is nothing to do.
__device__ inline Chunk ChunkOf(const AttendArgs& args, const AttendPass& pass) {
  const int tiles = (args.group + kHeadsTogether - 1) / kHeadsTogether;
  Chunk chunk = {};
  chunk.slot = static_cast<int>(blockIdx.x);
  chunk.kv_head = static_cast<int>(blockIdx.y) / tiles;
  chunk.row = pass.first_row + static_cast<int>(blockIdx.z);
  const int group_begin = chunk.kv_head * args.group - args.head_shift;
  const int first = group_begin > 0 ? group_begin : 0;
  const int end = group_begin + args.group < args.heads ? group_begin + args.group : args.heads;
  chunk.first_head = first + static_cast<int>(blockIdx.y) % tiles * kHeadsTogether;
  const int heads = end - chunk.first_head;
  chunk.begin = (pass.first_chunk + chunk.slot) * kChunk;
  const int left = args.pages.positions[chunk.row] + 1 - chunk.begin;
  chunk.count = left < kChunk ? left : kChunk;
  chunk.heads = left <= 0 ? 0 : heads < kHeadsTogether ? heads : kHeadsTogether;
  chunk.offsets = reinterpret_cast<int64_t*>(shared_memory);
  chunk.scores = reinterpret_cast<float*>(chunk.offsets + kChunk);
  chunk.queries = chunk.scores + kHeadsTogether * kChunk;
  return chunk;
}

__device__ inline void StageChunk(const AttendArgs& args, const Chunk& chunk) {
  const int width = QueryFloats(args);
  for (int i = static_cast<int>(threadIdx.x); i < kHeadsTogether * width; i += kAttendThreads) {
    const int head = i / width, at = i % width;
    const int second = RoundUp(args.parts[0].dim);
    const QueryPart& part = args.parts[at < second ? 0 : 1];
    const int d = at < second ? at : at - second;
    chunk.queries[i] = head < chunk.heads && d < part.dim
                           ? part.queries[chunk.row * part.row_stride +
                                          (chunk.first_head + head) * part.head_stride + d]
                           : 0.0f;
  }
  const int t = static_cast<int>(threadIdx.x);
  if (t < chunk.count) {
    const int position = chunk.begin + t;
    const int32_t* table = args.pages.block_tables[args.pages.sequences[chunk.row]];
    chunk.offsets[t] = table[position / args.pages.block_tokens] * args.pages.page_bytes +
                       chunk.kv_head * args.pages.head_bytes +
                       position % args.pages.block_tokens * args.pages.row_bytes;
  }
}

// sums[h] += queries of head h times the key of this thread's position, dimensions ascending.
template <Stored kType>
__device__ inline void AddScores(const AttendArgs& args, const QueryPart& part,
                                 const float* queries, int64_t offset, float* sums) {
  const std::byte* key = part.keys + offset;
  const int width = QueryFloats(args);
  for (int d = 0; d < part.dim; d += 4) {
    float k[4];
    LoadSome<kType, 4>(key, d, part.dim, args.aligned, k);
#pragma unroll
    for (int h = 0; h < kHeadsTogether; ++h) {
      const float4 q = *reinterpret_cast<const float4*>(queries + h * width + d);
      float sum = sums[h];
      sum = fmaf(q.x, k[0], sum);
      sum = fmaf(q.y, k[1], sum);
      sum = fmaf(q.z, k[2], sum);
      sums[h] = fmaf(q.w, k[3], sum);
    }
  }
}

template <Stored kType>
__device__ inline void ScorePosition(const AttendArgs& args, const Chunk& chunk) {
  const int t = static_cast<int>(threadIdx.x);
  float sums[kHeadsTogether] = {};
  if (t < chunk.count) {
    AddScores<kType>(args, args.parts[0], chunk.queries, chunk.offsets[t], sums);
    if (args.parts[1].dim > 0) {
      AddScores<kType>(args, args.parts[1], chunk.queries + RoundUp(args.parts[0].dim),
                       chunk.offsets[t], sums);
    }
  }
#pragma unroll
  for (int h = 0; h < kHeadsTogether; ++h) chunk.scores[h * kChunk + t] = sums[h] * args.scale;
}

// Scores become e^(score - largest); the chunk's maximum and sum go to its part.
__device__ inline void WeighPositions(const Chunk& chunk, int head, float* part) {
  float* scores = chunk.scores + head * kChunk;
  float largest = scores[0];
  for (int i = Lane(); i < chunk.count; i += kWarp)
    largest = scores[i] > largest ? scores[i] : largest;
  largest = WarpMax(largest);
  float sum = 0;
  for (int i = Lane(); i < kChunk; i += kWarp) {
    const float weight = i < chunk.count ? Exp(scores[i] - largest) : 0.0f;
    scores[i] = weight;
    sum += weight;
  }
  sum = WarpSum(sum);
  if (Lane() == 0) {
    part[0] = largest;
    part[1] = sum;
  }
}

// The values of a chunk, weighted, for kHeadsOfUnit heads from `head` on and two dimensions a lane.
template <Stored kType>
__device__ inline void AddValues(const AttendArgs& args, const Chunk& chunk, int head, int d,
                                 float (&sums)[kHeadsOfUnit][2]) {
  for (int begin = 0; begin < chunk.count; begin += 4) {
    float weights[kHeadsOfUnit][4], values[4][2] = {};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (begin + j < chunk.count && d < args.value_dim) {
        LoadSome<kType, 2>(args.values + chunk.offsets[begin + j], d, args.value_dim, args.aligned,
                           values[j]);
      }
    }
#pragma unroll
    for (int h = 0; h < kHeadsOfUnit; ++h) {
      const float4 four =
          *reinterpret_cast<const float4*>(chunk.scores + (head + h) * kChunk + begin);
      weights[h][0] = four.x, weights[h][1] = four.y, weights[h][2] = four.z,
      weights[h][3] = four.w;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (begin + j >= chunk.count) continue;
#pragma unroll
      for (int h = 0; h < kHeadsOfUnit; ++h) {
        sums[h][0] = fmaf(weights[h][j], values[j][0], sums[h][0]);
        sums[h][1] = fmaf(weights[h][j], values[j][1], sums[h][1]);
      }
    }
  }
}

template <Stored kType>
__global__ void __launch_bounds__(kAttendThreads, 2) AttendChunk(AttendArgs args, AttendPass pass) {
  const Chunk chunk = ChunkOf(args, pass);
  if (chunk.heads <= 0) return;
  StageChunk(args, chunk);
  __syncthreads();
  ScorePosition<kType>(args, chunk);
  __syncthreads();
  const int64_t part_floats = kPartExtra + args.value_dim;
  const int64_t first_part =
      (static_cast<int64_t>(blockIdx.z) * args.heads + chunk.first_head) * pass.slots + chunk.slot;
  float* parts = pass.chunks + first_part * part_floats;  // of the first head
  const int64_t next_head = pass.slots * part_floats;
  for (int head = WarpIndex(); head < chunk.heads; head += kAttendWarps)
    WeighPositions(chunk, head, parts + head * next_head);
  __syncthreads();
  const int head_units = (chunk.heads + kHeadsOfUnit - 1) / kHeadsOfUnit;
  const int units = head_units * ((args.value_dim + kDimsOfUnit - 1) / kDimsOfUnit);
  for (int unit = WarpIndex(); unit < units; unit += kAttendWarps) {
    const int head = unit % head_units * kHeadsOfUnit;
    const int d = unit / head_units * kDimsOfUnit + 2 * Lane();
    float sums[kHeadsOfUnit][2] = {};
    AddValues<kType>(args, chunk, head, d, sums);
#pragma unroll
    for (int h = 0; h < kHeadsOfUnit; ++h) {
      float* to = parts + (head + h) * next_head + kPartExtra + d;
      if (head + h < chunk.heads && d < args.value_dim) to[0] = sums[h][0];
      if (head + h < chunk.heads && d + 1 < args.value_dim) to[1] = sums[h][1];
    }
  }
}

struct Folded {
  float value, largest, sum;

  __device__ void Add(float other_value, float other_largest, float other_sum) {
    const float top = other_largest > largest ? other_largest : largest;
    const float mine = Exp(largest - top), others = Exp(other_largest - top);
    value = fmaf(other_value, others, value * mine);
    sum = fmaf(other_sum, others, sum * mine);
    largest = top;
  }
};

// A row's chunks of one wave, for one head: onto those of the waves before, which `out` and
// pass.folds hold.
__global__ void FoldChunks(AttendArgs args, AttendPass pass) {
  const int head = static_cast<int>(blockIdx.x);
  const int row = pass.first_row + static_cast<int>(blockIdx.y);
  const int last = args.pages.positions[row] / kChunk - pass.first_chunk;
  if (last < 0) return;
  const int64_t index = static_cast<int64_t>(blockIdx.y) * args.heads + head;
  const int64_t part_floats = kPartExtra + args.value_dim;
  const float* parts = pass.chunks + index * pass.slots * part_floats;
  float* fold = pass.folds + 2 * index;
  float* out = args.out + row * args.out_row_stride + head * args.out_head_stride;
  const bool first = pass.first_chunk == 0;
  const float largest = first ? parts[0] : fold[0], sum = first ? parts[1] : fold[1];
  Folded folded = {0, largest, sum};
  for (int d = static_cast<int>(threadIdx.x); d < args.value_dim;
       d += static_cast<int>(blockDim.x)) {
    folded = {first ? parts[kPartExtra + d] : out[d], largest, sum};
    for (int slot = first ? 1 : 0; slot < pass.slots && slot <= last; ++slot) {
      const float* part = parts + slot * part_floats;
      folded.Add(part[kPartExtra + d], part[0], part[1]);
    }
    out[d] = last < pass.slots ? folded.value * (1 / folded.sum) : folded.value;
  }
  __syncthreads();  // all have read the fold
  if (threadIdx.x == 0) {
    fold[0] = folded.largest;
    fold[1] = folded.sum;
  }
}

template <Stored kType>
cudaError_t StartPass(const Launch& launch, const AttendArgs& args, const AttendPass& pass) {
  const int tiles = (args.group + kHeadsTogether - 1) / kHeadsTogether;
  const cudaError_t error =
      Start(launch, AttendChunk<kType>, Grid(pass.slots, args.kv_heads * tiles, pass.rows),
            kAttendThreads, AttendShared(args), args, pass);
  if (error != cudaSuccess) return error;
  return Start(launch, FoldChunks, Grid(args.heads, pass.rows), 128, 0, args, pass);
}

}  // namespace

cudaError_t LaunchAttention(const Launch& launch, Stored type, const AttendArgs& args,
                            int64_t most_chunks, float* work, int64_t work_floats) {
  constexpr int64_t kMostInGrid = 65535;
  const auto clamp = [](int64_t value, int64_t most) {
    return value < 1 ? int64_t{1} : value < most ? value : most;
  };
  const int64_t rows = clamp(work_floats / PassFloats(args, 1), clamp(args.rows, kMostInGrid));
  int64_t slots = most_chunks;
  while (slots > 1 && rows * PassFloats(args, slots) > work_floats) slots = (slots + 1) / 2;
  for (int64_t first = 0; first < args.rows; first += rows) {
    AttendPass pass;
    pass.first_row = static_cast<int32_t>(first);
    pass.rows = static_cast<int32_t>(first + rows < args.rows ? rows : args.rows - first);
    pass.slots = static_cast<int32_t>(slots);
    pass.folds = work;
    pass.chunks = work + rows * args.heads * 2;
    for (int64_t chunk = 0; chunk < most_chunks; chunk += slots) {
      pass.first_chunk = static_cast<int32_t>(chunk);
      cudaError_t error = cudaErrorNotSupported;
      if (type == Stored::kF32) error = StartPass<Stored::kF32>(launch, args, pass);
      if (type == Stored::kBF16) error = StartPass<Stored::kBF16>(launch, args, pass);
      if (type == Stored::kF16) error = StartPass<Stored::kF16>(launch, args, pass);
      if (type == Stored::kQ8) error = StartPass<Stored::kQ8>(launch, args, pass);
      if (error != cudaSuccess) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace lockstep::kernels::cuda
