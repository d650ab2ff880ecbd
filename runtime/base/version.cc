#include "runtime/base/version.h"

#include "runtime/base/version_generated.h"

namespace lockstep {

std::string SourceVersion() { return std::string(LOCKSTEP_VERSION) + "+" + LOCKSTEP_COMMIT; }

std::string BuildDescription() {
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#else
  const std::string compiler = "gcc " __VERSION__;
#endif
#if defined(NDEBUG)
  return SourceVersion() + " (" + compiler + ", optimized)";
#else
  return SourceVersion() + " (" + compiler + ", with assertions)";
#endif
}

}  // namespace lockstep
