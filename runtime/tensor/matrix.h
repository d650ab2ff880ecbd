// A weight matrix, or a stack of equal ones, in host memory as checkpoints have it: row-major
// [outputs, inputs].
#pragma once

#include <cstdint>

#include "runtime/base/dtype.h"
#include "runtime/tensor/buffer.h"

namespace lockstep {

struct HostMatrix {
  DType type = DType::kF32;
  int64_t count = 1;    // matrices in the stack (experts)
  int64_t outputs = 0;  // rows
  int64_t inputs = 0;   // columns
  Buffer data;          // [count][outputs][inputs], with 64 spare bytes behind

  static StatusOr<HostMatrix> Allocate(DType type, int64_t count, int64_t outputs, int64_t inputs,
                                       const char* what);
  uint64_t row_bytes() const { return static_cast<uint64_t>(inputs) * SizeOf(type); }
  std::byte* row(int64_t index, int64_t output) {
    return data.data() + static_cast<uint64_t>(index * outputs + output) * row_bytes();
  }
};

}  // namespace lockstep
