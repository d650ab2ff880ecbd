// Tells tests where the repository and the program under test are, unless the caller said so: a
// test program can be started by hand, and a sanitizer build can drive the release program.
#include <cstdlib>

namespace {

__attribute__((constructor(101))) void SetDefaults() {
  setenv("LOCKSTEP_SOURCE_DIR", LOCKSTEP_DEFAULT_SOURCE_DIR, 0);
  setenv("LOCKSTEP_BINARY", LOCKSTEP_DEFAULT_BINARY, 0);
}

}  // namespace
