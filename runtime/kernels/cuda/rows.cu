// Ops that go through rows once: norms, the gate of the experts, heads side by side.
#include "runtime/kernels/cuda/device.cuh"
#include "runtime/kernels/cuda/start.cuh"

namespace lockstep::kernels::cuda {
namespace {

constexpr int kRowThreads = 256;

// A block of threads each row: squares in 256 lanes, lane = index mod 256, folded by BlockSum.
__global__ void NormRows(NormArgs args) {
  float* x = args.x + blockIdx.x * args.dim;
  float squares = 0;
  for (int64_t i = threadIdx.x; i < args.dim; i += kRowThreads) {
    if (args.delta != nullptr) x[i] += args.delta[blockIdx.x * args.dim + i];
    squares = fmaf(x[i], x[i], squares);
  }
  const float mean = BlockSum(squares) / static_cast<float>(args.dim);
  const float scale = 1 / sqrtf(mean + args.eps);
  float* y = args.y + blockIdx.x * args.dim;
  for (int64_t i = threadIdx.x; i < args.dim; i += kRowThreads)
    y[i] = x[i] * scale * args.weight[i];
}

__global__ void Silu(const float* gate_up, int64_t items, int64_t columns, float* out) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (item >= items) return;
  const float* gate = gate_up + item / columns * (2 * columns) + item % columns;
  out[item] = gate[0] * Sigmoid(gate[0]) * gate[columns];
}

__global__ void HeadsToRows(const float* x, int64_t heads, int64_t rows, int64_t dim, float* y) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kRowThreads + threadIdx.x;
  if (item >= heads * rows * dim) return;
  const int64_t row = item / (heads * dim), head = item / dim % heads;
  y[item] = x[(head * rows + row) * dim + item % dim];
}

dim3 GridOf(int64_t items) { return Grid((items + kRowThreads - 1) / kRowThreads); }

}  // namespace

cudaError_t LaunchNorm(const Launch& launch, const NormArgs& args) {
  return Start(launch, NormRows, Grid(args.rows), kRowThreads, kRowThreads / kWarp * sizeof(float),
               args);
}

cudaError_t LaunchSilu(const Launch& launch, const float* gate_up, int64_t rows, int64_t columns,
                       float* out) {
  const int64_t items = rows * columns;
  return Start(launch, Silu, GridOf(items), kRowThreads, 0, gate_up, items, columns, out);
}

cudaError_t LaunchJoinHeads(const Launch& launch, const float* x, int64_t heads, int64_t rows,
                            int64_t dim, float* y) {
  return Start(launch, HeadsToRows, GridOf(heads * rows * dim), kRowThreads, 0, x, heads, rows, dim,
               y);
}

}  // namespace lockstep::kernels::cuda
