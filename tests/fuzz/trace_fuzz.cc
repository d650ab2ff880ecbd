// Any bytes as a trace: an error or requests, never a crash.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/trace_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzTrace({reinterpret_cast<const char*>(data), size});
  return 0;
}
