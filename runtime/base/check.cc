#include "runtime/base/check.h"

#include <cstdio>
#include <cstdlib>

namespace lockstep {

void CheckFailed(const char* file, int line, const char* condition) {
  std::fprintf(stderr, "lockstep: bug: %s:%d: check failed: %s\n", file, line, condition);
  std::abort();
}

}  // namespace lockstep
