#include "runtime/tensor/matrix.h"

#include "runtime/base/check.h"

namespace lockstep {

StatusOr<uint64_t> HostMatrix::BytesOf(const HostMatrix& shape, const char* what) {
  LOCKSTEP_CHECK(shape.phase >= 0 && (shape.phase == 0 || shape.phase < shape.format.group_blocks));
  constexpr uint64_t kSpareBytes = 64;
  // Beyond it the sizes of a row's planes could overflow.
  constexpr int64_t kMostInputs = int64_t{1} << 48;
  if (shape.inputs < 0 || shape.inputs >= kMostInputs) {
    return ModelError("%s: %d columns are too many", what, shape.inputs);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(int64_t size, CheckedProduct(shape.count, shape.outputs, what));
  LOCKSTEP_ASSIGN_OR_RETURN(size,
                            CheckedProduct(size, static_cast<int64_t>(shape.row_bytes()), what));
  return static_cast<uint64_t>(size) + kSpareBytes;
}

void HostMatrix::TouchFirst(ThreadPool& pool) {
  constexpr uint64_t kPageBytes = 4096;
  constexpr int64_t kPanelOutputs = 16;  // the parts that products are cut into
  const uint64_t bytes_of_row = row_bytes();
  for (int64_t index = 0; index < count; ++index) {
    pool.ParallelFor(outputs, kPanelOutputs, [&](int64_t begin, int64_t end, int) {
      std::byte* const first = row(index, begin);
      const uint64_t bytes = static_cast<uint64_t>(end - begin) * bytes_of_row;
      for (uint64_t at = 0; at < bytes; at += kPageBytes) first[at] = std::byte{0};
    });
  }
}

StatusOr<HostMatrix> HostMatrix::Allocate(const WeightFormat& format, int64_t count,
                                          int64_t outputs, int64_t inputs, const char* what,
                                          int64_t phase) {
  HostMatrix matrix;
  matrix.format = format;
  matrix.count = count;
  matrix.outputs = outputs;
  matrix.inputs = inputs;
  matrix.phase = phase;
  LOCKSTEP_ASSIGN_OR_RETURN(const uint64_t bytes, BytesOf(matrix, what));
  LOCKSTEP_ASSIGN_OR_RETURN(matrix.data, Buffer::Allocate(bytes, what));
  return matrix;
}

}  // namespace lockstep
