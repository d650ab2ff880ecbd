// Stands in where CUDA is not built in.
#include "runtime/kernels/backend.h"

namespace lockstep::kernels {

StatusOr<std::unique_ptr<Backend>> MakeCudaBackend(int device, Precision) {
  return UsageError(
      "--device cuda:%d: this lockstep was built without CUDA; install NVIDIA's CUDA toolkit "
      "(nvcc), "
      "configure with -DLOCKSTEP_CUDA=ON and build again, or leave --device out to compute on the "
      "processor",
      device);
}

}  // namespace lockstep::kernels
