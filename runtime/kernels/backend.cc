#include "runtime/kernels/backend.h"

namespace lockstep::kernels {

StatusOr<std::unique_ptr<Backend>> MakeBackend(std::string_view name) {
  if (name == "ref") return MakeRefBackend();
  if (name == "auto" || name == "cpu") return MakeCpuBackend("");
  if (name.substr(0, 4) == "cpu/") return MakeCpuBackend(name.substr(4));
  return UsageError("--kernels: '%s' is not one of auto, ref, cpu", std::string(name));
}

}  // namespace lockstep::kernels
