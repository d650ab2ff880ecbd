// That the emulation shows what is wrong with a kernel, and that results depend on neither the
// order of threads nor on how attention is parted.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/kernels/cuda/attend.h"
#include "runtime/kernels/cuda/device.cuh"
#include "runtime/kernels/cuda/start.cuh"
#include "tests/runtime/kernels/cuda_emulation/emulation.h"
#include "tests/support/kernels.h"

namespace lockstep::kernels::cuda {
namespace {

class CudaEmulation : public ::testing::Test {
 protected:
  struct Stream {
    explicit Stream(int device) {
      cudaSetDevice(device);
      cudaStreamCreateWithFlags(&launch.stream, cudaStreamNonBlocking);
    }
    ~Stream() { cudaStreamDestroy(launch.stream); }
    Launch launch;
  };
};

// Neighbours exchange what they have; `kBarrier` between writing and reading, or not.
template <bool kBarrier>
__global__ void Neighbours(float* y) {
  auto* shared = reinterpret_cast<float*>(shared_memory);
  shared[threadIdx.x] = static_cast<float>(threadIdx.x);
  if (kBarrier) __syncthreads();
  y[threadIdx.x] = shared[(threadIdx.x + 1) % blockDim.x] + shared[(threadIdx.x + 63) % blockDim.x];
}

template <bool kBarrier>
std::vector<float> RunNeighbours(const Launch& launch) {
  std::vector<float> y(64);
  cudaSetDevice(launch.stream->device);
  EXPECT_EQ(Start(launch, Neighbours<kBarrier>, Grid(1), 64, 64 * sizeof(float), y.data()),
            cudaSuccess);
  return y;
}

TEST_F(CudaEmulation, AMissingBarrierShows) {
  const Stream up(0), down(1);
  EXPECT_EQ(RunNeighbours<true>(up.launch), RunNeighbours<true>(down.launch));
  EXPECT_EQ(RunNeighbours<true>(up.launch)[5], 10.0f);
  EXPECT_TRUE(std::isnan(RunNeighbours<false>(up.launch)[5]));
  EXPECT_TRUE(std::isnan(RunNeighbours<false>(down.launch)[5]));
}

__global__ void HalfABarrier(float* y) {
  if (threadIdx.x < 32) __syncthreads();
  y[threadIdx.x] = 1;
}
__global__ void BehindTheSharedMemory(float* y) {
  reinterpret_cast<float*>(shared_memory)[64] = y[0];
}

TEST(CudaEmulationDeathTest, ABarrierThatNotAllReachEndsTheProcess) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  cudaStream_t stream;
  cudaSetDevice(0);
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  const Launch launch{stream, 1};
  std::vector<float> y(64);
  EXPECT_DEATH(Start(launch, HalfABarrier, Grid(1), 64, 0, y.data()), "never come to the same");
  EXPECT_DEATH(Start(launch, BehindTheSharedMemory, Grid(1), 32, 256, y.data()),
               "behind the shared memory");
  cudaStreamDestroy(stream);
}

TEST_F(CudaEmulation, LanesExchangeWithinTheirWarp) {
  const Stream up(0);
  std::vector<float> y(64);
  const auto kernel = +[](float* to) {
    to[threadIdx.x] = WarpSum(threadIdx.x < 32 ? 1.0f : static_cast<float>(Lane()));
  };
  ASSERT_EQ(Start(up.launch, kernel, Grid(1), 64, 0, y.data()), cudaSuccess);
  for (int i = 0; i < 64; ++i) EXPECT_EQ(y[i], i < 32 ? 32.0f : 496.0f);
}

// One sequence of GLM-4.7's head shape, several chunks long, and rows at its end.
class CudaWaves : public ::testing::Test {
 protected:
  static constexpr int kHeads = 5, kDim = 16, kRows = 3, kPositions = 1300, kTokens = 16;

  CudaWaves() {
    for (int i = 0; i < (kPositions + kTokens) / kTokens + 1; ++i) table_.push_back(i);
    tables_[0] = table_.data();
    pages_ =
        lockstep::testing::Random(random_, static_cast<int64_t>(table_.size()) * kTokens * kDim);
    queries_ = lockstep::testing::Random(random_, kRows * kHeads * kDim);
  }
  AttendArgs Args(float* out) {
    AttendArgs args;
    args.pages = {positions_,         sequences_, tables_, kTokens * kDim * 4,
                  kTokens * kDim * 4, kDim * 4,   kTokens};
    const auto* stored = reinterpret_cast<const std::byte*>(pages_.data());
    args.parts[0] = {queries_.data(), kHeads * kDim, kDim, stored, kDim};
    args.values = stored;
    args.value_dim = kDim;
    args.rows = kRows;
    args.heads = kHeads;
    args.kv_heads = 1;
    args.group = kHeads;
    args.scale = 0.25f;
    args.aligned = false;
    args.out = out;
    args.out_row_stride = kHeads * kDim;
    args.out_head_stride = kDim;
    return args;
  }
  std::vector<float> Run(int device, int64_t work_floats) {
    cudaSetDevice(device);
    Launch launch;
    cudaStreamCreateWithFlags(&launch.stream, cudaStreamNonBlocking);
    std::vector<float> out(kRows * kHeads * kDim, NAN);
    std::vector<float> work(static_cast<size_t>(work_floats) + 1, NAN);
    EXPECT_EQ(LaunchAttention(launch, Stored::kF32, Args(out.data()), kPositions / kChunk + 1,
                              work.data(), work_floats),
              cudaSuccess);
    EXPECT_TRUE(std::isnan(work.back())) << "written behind the place of chunks";
    cudaStreamDestroy(launch.stream);
    return out;
  }

  std::mt19937_64 random_{7};
  std::vector<int32_t> table_;
  const int32_t* tables_[1];
  int32_t positions_[kRows] = {kPositions, 255, 256}, sequences_[kRows] = {0, 0, 0};
  std::vector<float> pages_, queries_;
};

TEST_F(CudaWaves, ChunksInWavesAndRowsInPassesGiveTheSameBits) {
  float unused;
  const AttendArgs args = Args(&unused);
  const std::vector<float> whole = Run(0, 1 << 20);
  for (const float value : whole) EXPECT_TRUE(std::isfinite(value));
  EXPECT_EQ(Run(1, 1 << 20), whole);
  for (const int64_t slots : {1, 2, 3}) {
    for (const int64_t rows : {1, 2, 3}) {
      const int before = emulation::Launches();
      EXPECT_EQ(Run(0, rows * PassFloats(args, slots)), whole) << rows << " rows " << slots;
      EXPECT_GT(emulation::Launches() - before, 2);
    }
  }
}

}  // namespace
}  // namespace lockstep::kernels::cuda
