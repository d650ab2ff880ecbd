// The router: scores, the best experts of each row, their rows in order, and their sum.
#include "runtime/kernels/cuda/device.cuh"
#include "runtime/kernels/cuda/start.cuh"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kGroupThreads = 1024;  // one for each of at most kMaxExperts experts
constexpr int kCombineThreads = 256;

// The first of the largest values whose mark is `wanted`; every lane gets it. There is one.
__device__ inline int WarpLargest(const float* values, const int* marks, int wanted, int count) {
  int best = -1;
  for (int i = Lane(); i < count; i += kWarp) {
    if (marks[i] == wanted && (best < 0 || values[i] > values[best])) best = i;
  }
#pragma unroll
  for (int apart = kWarp / 2; apart > 0; apart /= 2) {
    const int other = __shfl_xor_sync(kAllLanes, best, apart);
    if (other < 0) continue;
    const bool larger = best < 0 || values[other] > values[best];
    if (larger || (values[other] == values[best] && other < best)) best = other;
  }
  return best;
}

// The `count` largest values, one after the other, from mark 0 to mark 1.
__device__ inline void MarkLargest(const float* values, int* marks, int count, int of) {
  for (int i = 0; i < count; ++i) {
    const int best = WarpLargest(values, marks, 0, of);
    __syncwarp();
    if (Lane() == 0) marks[best] = 1;
    __syncwarp();
  }
}

// A warp's own part of the shared memory.
struct RouteScratch {
  float* scores;  // [experts]
  float* choice;  // [experts] what is chosen by
  int* marks;     // [experts]
  int* order;     // [top_k]
};
size_t RouteShared(const RouteArgs& args) {
  return (3 * static_cast<size_t>(args.experts) + static_cast<size_t>(args.top_k)) * sizeof(float);
}

// Experts outside the best groups cannot be chosen; a group's score is the sum of its two best.
__device__ inline void KeepBestGroups(const RouteArgs& args, const RouteScratch& scratch) {
  const float none = -__uint_as_float(0x7f800000u);
  const int per_group = args.experts / args.n_group;
  float* best = scratch.scores;  // written again by the caller
  for (int group = Lane(); group < args.n_group; group += kWarp) {
    float first = none, second = none;
    for (int e = group * per_group; e < (group + 1) * per_group; ++e) {
      const float value = scratch.choice[e];
      const float lower = value < first ? value : first;
      second = lower > second ? lower : second;
      first = value > first ? value : first;
    }
    best[group] = first + (per_group > 1 ? second : 0.0f);
    scratch.marks[group] = 0;
  }
  __syncwarp();
  MarkLargest(best, scratch.marks, args.topk_group, args.n_group);
  for (int e = Lane(); e < per_group * args.n_group; e += kWarp) {
    if (scratch.marks[e / per_group] == 0) scratch.choice[e] = none;
  }
  __syncwarp();
}

__device__ inline void ScoreExperts(const RouteArgs& args, const float* logits, float* scores) {
  for (int e = Lane(); e < args.experts; e += kWarp) scores[e] = Sigmoid(logits[e]);
}

__device__ inline void StoreWeights(const RouteArgs& args, const RouteScratch& scratch) {
  float sum = 1e-20f;
  for (int slot = 0; slot < args.top_k; ++slot) sum += scratch.scores[scratch.order[slot]];
  for (int slot = Lane(); slot < args.top_k; slot += kWarp) {
    const int64_t at = static_cast<int64_t>(blockIdx.x) * args.top_k + slot;
    const float score = scratch.scores[scratch.order[slot]];
    args.chosen[at] = scratch.order[slot];
    args.weights[at] = (args.normalize ? score / sum : score) * args.scale;
  }
}

// A warp each row.
__global__ void RouteRows(RouteArgs args) {
  RouteScratch scratch;
  scratch.scores = reinterpret_cast<float*>(shared_memory);
  scratch.choice = scratch.scores + args.experts;
  scratch.marks = reinterpret_cast<int*>(scratch.choice + args.experts);
  scratch.order = scratch.marks + args.experts;
  const float* logits = args.logits + static_cast<int64_t>(blockIdx.x) * args.experts;
  ScoreExperts(args, logits, scratch.scores);
  for (int e = Lane(); e < args.experts; e += kWarp)
    scratch.choice[e] = scratch.scores[e] + args.correction[e];
  __syncwarp();
  if (args.n_group > 1) {
    KeepBestGroups(args, scratch);
    ScoreExperts(args, logits, scratch.scores);
  }
  for (int e = Lane(); e < args.experts; e += kWarp) scratch.marks[e] = 0;
  __syncwarp();
  // Largest choices first, then those in the order of their scores; ties by lower index.
  MarkLargest(scratch.choice, scratch.marks, args.top_k, args.experts);
  for (int slot = 0; slot < args.top_k; ++slot) {
    const int best = WarpLargest(scratch.scores, scratch.marks, 1, args.experts);
    __syncwarp();
    if (Lane() == 0) {
      scratch.marks[best] = 2;
      scratch.order[slot] = best;
    }
    __syncwarp();
  }
  StoreWeights(args, scratch);
}

// One block of threads, a thread for each expert, which goes through all choices: first to count
// its rows, then to write them behind those of the experts before it.
__global__ void OrderByExpert(RouteArgs args, Grouping to) {
  int* counts = reinterpret_cast<int*>(shared_memory);  // [kGroupThreads]
  int* choices = counts + kGroupThreads;                // [kGroupThreads] a piece of `chosen`
  const int expert = static_cast<int>(threadIdx.x);
  const auto assignments = static_cast<int>(args.rows) * args.top_k;
  int count = 0, next = 0, group = 0;
  for (int pass = 0; pass < 2; ++pass) {
    for (int begin = 0; begin < assignments; begin += kGroupThreads) {
      if (begin + expert < assignments) choices[expert] = args.chosen[begin + expert];
      __syncthreads();
      const int end = assignments - begin < kGroupThreads ? assignments - begin : kGroupThreads;
      for (int i = 0; i < end; ++i) {
        if (choices[i] != expert) continue;
        if (pass == 1) {
          to.row_of[next] = (begin + i) / args.top_k;
          to.assignment_of[begin + i] = next++;
        } else {
          ++count;
        }
      }
      __syncthreads();
    }
    if (pass == 1) break;
    counts[expert] = count;
    __syncthreads();
    for (int other = 0; other < expert; ++other) {
      next += counts[other];
      group += counts[other] > 0 ? 1 : 0;
    }
    if (count > 0) to.groups[group] = GroupOfRows{expert, next, next + count};
    if (expert == kGroupThreads - 1) *to.group_count = group + (count > 0 ? 1 : 0);
  }
}

__global__ void Combine(RouteArgs args, const int32_t* assignment_of, const float* expert_out,
                        const float* shared, int64_t dim, float* y) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kCombineThreads + threadIdx.x;
  if (item >= args.rows * dim) return;
  const int64_t row = item / dim, i = item % dim;
  float sum = 0;
  for (int64_t slot = row * args.top_k; slot < (row + 1) * args.top_k; ++slot)
    sum = fmaf(args.weights[slot], expert_out[assignment_of[slot] * dim + i], sum);
  y[item] = shared != nullptr ? sum + shared[item] : sum;
}

}  // namespace

cudaError_t LaunchRoute(const Launch& launch, const RouteArgs& args) {
  return Start(launch, RouteRows, Grid(args.rows), kWarp, RouteShared(args), args);
}

cudaError_t LaunchGroupRows(const Launch& launch, const RouteArgs& args, const Grouping& groups) {
  return Start(launch, OrderByExpert, Grid(1), kGroupThreads, 2 * kGroupThreads * sizeof(int), args,
               groups);
}

cudaError_t LaunchCombine(const Launch& launch, const RouteArgs& args, const int32_t* assignment_of,
                          const float* expert_out, const float* shared, int64_t dim, float* y) {
  const int64_t blocks = (args.rows * dim + kCombineThreads - 1) / kCombineThreads;
  return Start(launch, Combine, Grid(blocks), kCombineThreads, 0, args, assignment_of, expert_out,
               shared, dim, y);
}

}  // namespace lockstep::kernels::cuda
