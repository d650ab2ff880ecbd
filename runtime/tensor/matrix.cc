#include "runtime/tensor/matrix.h"

#include "runtime/base/check.h"

namespace lockstep {

StatusOr<HostMatrix> HostMatrix::Allocate(const WeightFormat& format, int64_t count,
                                          int64_t outputs, int64_t inputs, const char* what,
                                          int64_t phase) {
  LOCKSTEP_CHECK(phase >= 0 && (phase == 0 || phase < format.group_blocks));
  constexpr int64_t kSpareBytes = 64;
  // Beyond it the sizes of a row's planes could overflow.
  constexpr int64_t kMostInputs = int64_t{1} << 48;
  if (inputs < 0 || inputs >= kMostInputs) {
    return ModelError("%s: %d columns are too many", what, inputs);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(int64_t size, CheckedProduct(count, outputs, what));
  const auto row_bytes = static_cast<int64_t>(LayoutOf(format, inputs, phase).row_bytes);
  LOCKSTEP_ASSIGN_OR_RETURN(size, CheckedProduct(size, row_bytes, what));
  HostMatrix matrix;
  matrix.format = format;
  matrix.count = count;
  matrix.outputs = outputs;
  matrix.inputs = inputs;
  matrix.phase = phase;
  LOCKSTEP_ASSIGN_OR_RETURN(
      matrix.data, Buffer::Allocate(static_cast<uint64_t>(size) + uint64_t{kSpareBytes}, what));
  return matrix;
}

}  // namespace lockstep
