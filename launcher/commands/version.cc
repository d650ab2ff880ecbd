#include "runtime/base/version.h"

#include <cstdio>

#include "launcher/commands/commands.h"
#include "nlohmann/json.hpp"
#include "runtime/kernels/backend.h"

namespace lockstep {

Status VersionCommand(const Options& options) {
  const StatusOr<std::unique_ptr<kernels::Backend>> backend = kernels::MakeBackend(options.kernels);
  const std::string kernels = backend.ok() ? (*backend)->name() : MessageOf(backend.status());
  if (options.json) {
    const nlohmann::json line = {
        {"version", SourceVersion()}, {"build", BuildDescription()}, {"kernels", kernels}};
    std::printf("%s\n",
                line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    std::printf("lockstep %s\nkernels: %s\n", BuildDescription().c_str(), kernels.c_str());
  }
  return OkStatus();
}

}  // namespace lockstep
