// What the kernels' sources give the backend: one function an op, which puts its kernels on a
// stream and returns what CUDA says to that. All pointers are of memory that the device reads.
//
// These headers see neither abseil nor the op table, so that nvcc needs to parse neither.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "runtime/kernels/cuda/packed_rows.h"

namespace lockstep::kernels::cuda {

// Where kernels go.
struct Launch {
  cudaStream_t stream = nullptr;
  int processors = 1;  // multiprocessors of the device
};

// RowGroup of backend.h.
struct GroupOfRows {
  int32_t matrix = 0;
  int32_t begin = 0;
  int32_t end = 0;
};

struct ProductArgs {
  PackedRows weights;
  const float* bias = nullptr;  // [outputs] or nullptr
  const float* x = nullptr;
  float* y = nullptr;
  int64_t y_stride = 0;
  // Without groups: all rows are of the first matrix.
  int32_t rows = 0;
  const GroupOfRows* groups = nullptr;
  const int32_t* group_count = nullptr;
  const int32_t* row_of = nullptr;  // of x for each row of y; nullptr: the same
  int32_t most_groups = 1;          // that *group_count can be
  // Of what LaunchProducts itself fills in: rows of a group that one launch computes, and blocks of
  // 32 inputs that fit the shared memory.
  int32_t least_rows = 0, most_rows = 0;
  int32_t window_blocks = 0;
};

cudaError_t LaunchProducts(const Launch& launch, const WeightFormat& format,
                           const ProductArgs& args);
// The row of each token, as floats; zeros for tokens outside [first_row, first_row + outputs).
cudaError_t LaunchEmbed(const Launch& launch, const WeightFormat& format, const PackedRows& table,
                        int64_t first_row, const int32_t* tokens, int64_t rows, float* y);

// x += delta first, if there is one.
struct NormArgs {
  float* x = nullptr;            // read only without delta
  const float* delta = nullptr;  // or nullptr
  const float* weight = nullptr;
  float eps = 0;
  int64_t rows = 0, dim = 0;
  float* y = nullptr;
};
cudaError_t LaunchNorm(const Launch& launch, const NormArgs& args);
cudaError_t LaunchSilu(const Launch& launch, const float* gate_up, int64_t rows, int64_t columns,
                       float* out);
cudaError_t LaunchJoinHeads(const Launch& launch, const float* x, int64_t heads, int64_t rows,
                            int64_t dim, float* y);

// RouterArgs and ExpertGroups of backend.h.
struct RouteArgs {
  int64_t rows = 0;
  int32_t experts = 0, top_k = 0, n_group = 1, topk_group = 1;
  bool normalize = true;
  float scale = 1;
  const float* logits = nullptr;
  const float* correction = nullptr;
  int32_t* chosen = nullptr;
  float* weights = nullptr;
};
struct Grouping {
  GroupOfRows* groups = nullptr;
  int32_t* group_count = nullptr;
  int32_t* row_of = nullptr;
  int32_t* assignment_of = nullptr;
};
cudaError_t LaunchRoute(const Launch& launch, const RouteArgs& args);
cudaError_t LaunchGroupRows(const Launch& launch, const RouteArgs& args, const Grouping& groups);
cudaError_t LaunchCombine(const Launch& launch, const RouteArgs& args, const int32_t* assignment_of,
                          const float* expert_out, const float* shared, int64_t dim, float* y);

}  // namespace lockstep::kernels::cuda
