// A weight matrix, or a stack of equal ones, in host memory in the portable layout
// (weight_format.h): row-major [outputs, inputs].
#pragma once

#include <cstdint>

#include "runtime/base/thread_pool.h"
#include "runtime/tensor/buffer.h"
#include "runtime/tensor/weight_format.h"

namespace lockstep {

struct HostMatrix {
  WeightFormat format;
  int64_t count = 1;    // matrices in the stack (experts)
  int64_t outputs = 0;  // rows
  int64_t inputs = 0;   // columns
  int64_t phase = 0;    // of every row's first block
  int64_t packed = 0;   // matrices that are in a backend's layout already (Backend::PackNext)
  Buffer data;          // [count][outputs] rows of row_bytes(), with 64 spare bytes behind

  // Sizes are checked: a matrix that cannot be is an error that says `what`.
  static StatusOr<HostMatrix> Allocate(const WeightFormat& format, int64_t count, int64_t outputs,
                                       int64_t inputs, const char* what, int64_t phase = 0);
  // Bytes of `data` for the other members of `shape`, which needs none itself. Sizes are checked.
  static StatusOr<uint64_t> BytesOf(const HostMatrix& shape, const char* what);
  // Writes to every page, each from the thread of `pool` that a product gives its rows to, so that
  // the page comes to lie in the memory of that thread's processor. Before anything else is
  // written.
  void TouchFirst(ThreadPool& pool);
  uint64_t row_bytes() const { return LayoutOf(format, inputs, phase).row_bytes; }
  std::byte* row(int64_t index, int64_t output) {
    return data.data() + static_cast<uint64_t>(index * outputs + output) * row_bytes();
  }
};

}  // namespace lockstep
