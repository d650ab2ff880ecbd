// Products of packed weights and rows of float32, for one format each.
//
// A warp computes kOutputs outputs of kRows rows. Its lane i takes blocks i, i + 32, ... of 32
// inputs; in a block the inputs of a half are added up by fmaf from first to last, and the half's
// sum comes to the lane's (times the half's scale, by fmaf, where the format has one). In the end
// lanes are folded by halves (WarpSum), and the bias is added. Nothing of that depends on which
// rows and outputs are computed together.
//
// Inputs are staged in shared memory, a block of 32 at every 36th place: then a warp whose lanes
// read four inputs of their own blocks meets every bank once.
#pragma once

#include "runtime/kernels/cuda/codecs_tables.cuh"
#include "runtime/kernels/cuda/kernels.h"
#include "runtime/kernels/cuda/start.cuh"

namespace lockstep::kernels::cuda {

constexpr int kProductThreads = 256;
constexpr int kProductWarps = kProductThreads / kWarp;
constexpr int kStagedBlock = 36;  // floats of 32 inputs
// Shared memory of one block of threads; two of them fit a multiprocessor of every device.
constexpr int kStageBytes = 48 * 1024;

// Blocks of 32 inputs of `rows` rows that fit, a multiple of 32, so that a lane's blocks are the
// same wherever a window begins.
constexpr int WindowBlocks(int rows) {
  return kStageBytes / (kStagedBlock * static_cast<int>(sizeof(float)) * rows) / kWarp * kWarp;
}

// kCount words of a block, of which the first begins a piece (packed_rows.h). codes: its pieces of
// the first of `width` neighbouring blocks, of which each lane has its own.
template <int kCount>
__device__ inline void LoadWords(const std::byte* codes, int width, uint32_t* words) {
  constexpr int kFours = kCount / 4 * 4, kTwos = kCount / 2 * 2;
#pragma unroll
  for (int word = 0; word < kFours; word += 4) {
    const uint4 four = __ldg(reinterpret_cast<const uint4*>(codes + 4 * word * width) + Lane());
    words[word] = four.x;
    words[word + 1] = four.y;
    words[word + 2] = four.z;
    words[word + 3] = four.w;
  }
  if constexpr (kTwos > kFours) {
    const uint2 two = __ldg(reinterpret_cast<const uint2*>(codes + 4 * kFours * width) + Lane());
    words[kFours] = two.x;
    words[kFours + 1] = two.y;
  }
  if constexpr (kCount > kTwos) {
    words[kTwos] = __ldg(reinterpret_cast<const uint32_t*>(codes + 4 * kTwos * width) + Lane());
  }
}

// A block of a row: one whose index has the lane for its remainder by 32. The same for all rows.
struct BlockPlace {
  int block;
  int width;         // blocks whose words lie between each other
  int64_t codes_at;  // in the row, of the first of them

  template <typename Codec>
  __device__ static BlockPlace Of(const PackedRows& rows, int block) {
    const int first = block / kWarp * kWarp;
    return {block, rows.blocks - first < kWarp ? rows.blocks - first : kWarp,
            rows.codes_at + static_cast<int64_t>(first) * (4 * Codec::kWords)};
  }
};

// What is in registers of one block of one row.
template <typename Codec>
struct LoadedBlock {
  static constexpr int kPartWords = Codec::kWords / Codec::kLoads;
  BlockScales scales;
  uint32_t words[kPartWords];

  __device__ void Load(const PackedRows& rows, const std::byte* row, const BlockPlace& place) {
    scales = Codec::Load(rows, row, place.block);
    if constexpr (Codec::kLoads == 1) LoadPart(row, place, 0);
  }
  __device__ void LoadPart(const std::byte* row, const BlockPlace& place, int part) {
    LoadWords<kPartWords>(row + place.codes_at + 4 * kPartWords * part * place.width, place.width,
                          words);
  }
  __device__ void LoadHalf(const std::byte* row, const BlockPlace& place, int half) {
    if constexpr (Codec::kLoads == 2) LoadPart(row, place, half);
  }
  template <int kEight>
  __device__ void Eight(const std::byte* row, const BlockPlace& place, int half, float* values) {
    if constexpr (Codec::kLoads == 4) LoadPart(row, place, 2 * half + kEight);
    Codec::template Eight<kEight>(words, scales, half, values);
  }
  __device__ float Scale(int half) const { return half == 0 ? scales.scale[0] : scales.scale[1]; }
};

// The rows of neighbouring outputs; beyond the last output that one's once more.
struct TileRows {
  const std::byte* first;
  int64_t row_bytes;
  int last;

  __device__ const std::byte* Of(int o) const { return first + (o < last ? o : last) * row_bytes; }
};

template <int kRows, int kOutputs>
struct ProductTile {
  float sums[kOutputs][kRows] = {};

  // sums[o][r] += values[o] * x[r] for eight inputs.
  __device__ void Add(const float (&values)[kOutputs][8], const float* x, int row_stride) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float4 a = *reinterpret_cast<const float4*>(x + r * row_stride);
      const float4 b = *reinterpret_cast<const float4*>(x + r * row_stride + 4);
#pragma unroll
      for (int o = 0; o < kOutputs; ++o) {
        float sum = sums[o][r];
        sum = fmaf(a.x, values[o][0], sum);
        sum = fmaf(a.y, values[o][1], sum);
        sum = fmaf(a.z, values[o][2], sum);
        sum = fmaf(a.w, values[o][3], sum);
        sum = fmaf(b.x, values[o][4], sum);
        sum = fmaf(b.y, values[o][5], sum);
        sum = fmaf(b.z, values[o][6], sum);
        sums[o][r] = fmaf(b.w, values[o][7], sum);
      }
    }
  }
};

template <int kEight, typename Codec, int kRows, int kOutputs>
__device__ inline void AddEight(LoadedBlock<Codec> (&blocks)[kOutputs], const TileRows& rows,
                                const BlockPlace& place, int half, const float* x, int row_stride,
                                ProductTile<kRows, kOutputs>& tile) {
  float values[kOutputs][8];
#pragma unroll
  for (int o = 0; o < kOutputs; ++o)
    blocks[o].template Eight<kEight>(rows.Of(o), place, half, values[o]);
  tile.Add(values, x + 16 * half + 8 * kEight, row_stride);
}

// Half a block into the lane's sums.
template <typename Codec, int kRows, int kOutputs>
__device__ inline void AddHalf(LoadedBlock<Codec> (&blocks)[kOutputs], const TileRows& rows,
                               const BlockPlace& place, int half, const float* x, int row_stride,
                               ProductTile<kRows, kOutputs>& lane) {
  ProductTile<kRows, kOutputs> sums;
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) blocks[o].LoadHalf(rows.Of(o), place, half);
  AddEight<0>(blocks, rows, place, half, x, row_stride, sums);
  AddEight<1>(blocks, rows, place, half, x, row_stride, sums);
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if constexpr (Codec::kScaled) {
        lane.sums[o][r] = fmaf(blocks[o].Scale(half), sums.sums[o][r], lane.sums[o][r]);
      } else {
        lane.sums[o][r] += sums.sums[o][r];
      }
    }
  }
}

// Inputs [first_block, ...) of kRows rows from `begin` on; zeros where there are none.
template <int kRows>
__device__ inline void StageInputs(const ProductArgs& args, int begin, int end, int first_block,
                                   float* stage) {
  const int blocks = args.weights.blocks - first_block;
  const int count = kWarp * (blocks < args.window_blocks ? blocks : args.window_blocks);
  for (int r = 0; r < kRows; ++r) {
    const int row = begin + r;
    const bool some = row < end;
    const int64_t from = some && args.row_of != nullptr ? args.row_of[row] : row;
    const float* x = args.x + from * args.weights.inputs;
    float* to = stage + r * args.window_blocks * kStagedBlock;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kProductThreads) {
      const int input = first_block * kWarp + i;
      to[i / kWarp * kStagedBlock + i % kWarp] =
          some && input < args.weights.inputs ? x[input] : 0.0f;
    }
  }
}

// The staged blocks from first_block on times kOutputs rows of weights.
template <typename Codec, int kRows, int kOutputs>
__device__ inline void AddWindow(const ProductArgs& args, const TileRows& rows, int first_block,
                                 const float* stage, ProductTile<kRows, kOutputs>& lane) {
  const int left = args.weights.blocks - first_block;
  const int count = left < args.window_blocks ? left : args.window_blocks;
#pragma unroll 1
  for (int block = Lane(); block < count; block += kWarp) {
    const auto place = BlockPlace::Of<Codec>(args.weights, first_block + block);
    LoadedBlock<Codec> blocks[kOutputs];
#pragma unroll
    for (int o = 0; o < kOutputs; ++o) blocks[o].Load(args.weights, rows.Of(o), place);
    const float* x = stage + block * kStagedBlock;
    const int row_stride = args.window_blocks * kStagedBlock;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) AddHalf(blocks, rows, place, half, x, row_stride, lane);
  }
}

template <int kRows, int kOutputs>
__device__ inline void StoreTile(const ProductArgs& args, int64_t first_output, int begin, int end,
                                 const ProductTile<kRows, kOutputs>& lane) {
#pragma unroll
  for (int o = 0; o < kOutputs; ++o) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float sum = WarpSum(lane.sums[o][r]);
      const int64_t output = first_output + o;
      if (Lane() == o * kRows + r && output < args.weights.outputs && begin + r < end) {
        const float bias = args.bias != nullptr ? args.bias[output] : 0.0f;
        args.y[(begin + r) * args.y_stride + output] = sum + bias;
      }
    }
  }
}

// Blocks of threads go from one pair (group, tile of outputs) to another, so that a grid fits the
// device, however many groups there turn out to be.
template <typename Codec, int kRows, int kOutputs>
__global__ void __launch_bounds__(kProductThreads, 2) Products(ProductArgs args) {
  constexpr int kTile = kProductWarps * kOutputs;
  float* stage = reinterpret_cast<float*>(shared_memory);
  const int tiles = static_cast<int>((args.weights.outputs + kTile - 1) / kTile);
  const int groups = args.groups != nullptr ? *args.group_count : 1;
  const bool whole = args.window_blocks >= args.weights.blocks;
  int staged = -1;  // the first of the rows whose inputs are all staged
  for (int item = static_cast<int>(blockIdx.x); item < groups * tiles;
       item += static_cast<int>(gridDim.x)) {
    const GroupOfRows group =
        args.groups != nullptr ? args.groups[item / tiles] : GroupOfRows{0, 0, args.rows};
    const int count = group.end - group.begin;
    if (count < args.least_rows || count > args.most_rows) continue;
    const int64_t first_output = item % tiles * kTile + WarpIndex() * kOutputs;
    const int64_t after = args.weights.outputs - 1 - first_output;
    const int64_t first_row = after < 0 ? args.weights.outputs - 1 : first_output;
    const TileRows rows = {args.weights.data + (group.matrix * args.weights.outputs + first_row) *
                                                   args.weights.row_bytes,
                           args.weights.row_bytes,
                           after < 0          ? 0
                           : after < kOutputs ? static_cast<int>(after)
                                              : kOutputs};
    for (int begin = group.begin; begin < group.end; begin += kRows) {
      ProductTile<kRows, kOutputs> lane;
      for (int first = 0; first < args.weights.blocks; first += args.window_blocks) {
        if (!whole || staged != begin) {
          __syncthreads();
          StageInputs<kRows>(args, begin, group.end, first, stage);
          __syncthreads();
          staged = begin;
        }
        AddWindow<Codec>(args, rows, first, stage, lane);
      }
      StoreTile(args, first_output, begin, group.end, lane);
    }
  }
}

// One row of y each.
template <typename Codec>
__global__ void EmbedRows(PackedRows table, int64_t first_row, const int32_t* tokens, float* y) {
  const int64_t index = tokens[blockIdx.x] - first_row;
  float* to = y + static_cast<int64_t>(blockIdx.x) * table.inputs;
  const bool mine = index >= 0 && index < table.outputs;
  for (int block = static_cast<int>(threadIdx.x); block < table.blocks;
       block += static_cast<int>(blockDim.x)) {
    LoadedBlock<Codec> loaded;
    const std::byte* row = table.data + index * table.row_bytes;
    const auto place = BlockPlace::Of<Codec>(table, block);
    if (mine) loaded.Load(table, row, place);
    for (int half = 0; half < 2; ++half) {
      float values[16] = {};
      if (mine) {
        loaded.LoadHalf(row, place, half);
        loaded.template Eight<0>(row, place, half, values);
        loaded.template Eight<1>(row, place, half, values + 8);
      }
      const int first = block * kWarp + half * 16;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        if (first + i < table.inputs)
          to[first + i] = Codec::kScaled && mine ? values[i] * loaded.Scale(half) : values[i];
      }
    }
  }
}

template <typename Codec, int kRows, int kOutputs>
cudaError_t StartProducts(const Launch& launch, ProductArgs args, int least_rows, int most_rows) {
  constexpr int kTile = kProductWarps * kOutputs;
  args.least_rows = least_rows;
  args.most_rows = most_rows;
  args.window_blocks = WindowBlocks(kRows);
  const int64_t tiles = (args.weights.outputs + kTile - 1) / kTile;
  const int64_t items = tiles * args.most_groups;
  const int64_t most = int64_t{4} * launch.processors;
  if (args.weights.blocks < args.window_blocks) args.window_blocks = args.weights.blocks;
  return Start(launch, Products<Codec, kRows, kOutputs>, Grid(items < most ? items : most),
               kProductThreads, sizeof(float) * kRows * args.window_blocks * kStagedBlock, args);
}

// A group of one row has a kernel of its own, which waits for no others and reads most. Where the
// host does not know the groups both are launched, and each computes its own ones.
template <typename Codec>
cudaError_t StartProductsOf(const Launch& launch, const ProductArgs& args) {
  constexpr int kMany = 1 << 30;
  constexpr int kOutputs = Codec::kWords > 16 ? 2 : 4;  // float32 takes twice the registers
  const bool known = args.groups == nullptr;
  if (!known || args.rows == 1) {
    const cudaError_t error = StartProducts<Codec, 1, 2>(launch, args, 1, 1);
    if (error != cudaSuccess) return error;
  }
  if (!known || args.rows > 1) return StartProducts<Codec, 4, kOutputs>(launch, args, 2, kMany);
  return cudaSuccess;
}

template <typename Codec>
cudaError_t StartEmbed(const Launch& launch, const PackedRows& table, int64_t first_row,
                       const int32_t* tokens, int64_t rows, float* y) {
  return Start(launch, EmbedRows<Codec>, Grid(rows), 128, 0, table, first_row, tokens, y);
}

// What a source of kernels gives for the formats it compiles; nullptr: another one has them.
struct FormatKernels {
  cudaError_t (*products)(const Launch&, const ProductArgs&);
  cudaError_t (*embed)(const Launch&, const PackedRows&, int64_t, const int32_t*, int64_t, float*);
};
template <typename Codec>
constexpr FormatKernels KernelsOf() {
  return {StartProductsOf<Codec>, StartEmbed<Codec>};
}
FormatKernels NumberKernels(const WeightFormat& format);  // plain and 4-bit numbers, FP8
FormatKernels GgufKernels(const WeightFormat& format);
FormatKernels MlxKernels(const WeightFormat& format);

}  // namespace lockstep::kernels::cuda
