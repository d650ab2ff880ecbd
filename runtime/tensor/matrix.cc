#include "runtime/tensor/matrix.h"

namespace lockstep {

StatusOr<HostMatrix> HostMatrix::Allocate(DType type, int64_t count, int64_t outputs,
                                          int64_t inputs, const char* what) {
  LOCKSTEP_ASSIGN_OR_RETURN(int64_t size, CheckedProduct(count, outputs, what));
  LOCKSTEP_ASSIGN_OR_RETURN(size, CheckedProduct(size, inputs, what));
  LOCKSTEP_ASSIGN_OR_RETURN(size, CheckedProduct(size, static_cast<int64_t>(SizeOf(type)), what));
  HostMatrix matrix;
  matrix.type = type;
  matrix.count = count;
  matrix.outputs = outputs;
  matrix.inputs = inputs;
  LOCKSTEP_ASSIGN_OR_RETURN(matrix.data, Buffer::Allocate(static_cast<uint64_t>(size) + 64, what));
  return matrix;
}

}  // namespace lockstep
