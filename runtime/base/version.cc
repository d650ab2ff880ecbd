#include "runtime/base/version.h"

#include "runtime/base/version_generated.h"

namespace lockstep {

std::string SourceVersion() { return LOCKSTEP_VERSION "+" LOCKSTEP_SOURCE_DIGEST; }

std::string BuildDescription() {
#if defined(__clang__)
  const std::string compiler = "clang " __clang_version__;
#else
  const std::string compiler = "gcc " __VERSION__;
#endif
#if defined(NDEBUG)
  const std::string build = "optimized";
#else
  const std::string build = "with assertions";
#endif
  return SourceVersion() + " (commit " LOCKSTEP_COMMIT ", " + compiler + ", " + build + ")";
}

}  // namespace lockstep
