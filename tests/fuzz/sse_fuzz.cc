// Any bytes as what a server streams: events, the same in any pieces, and never a crash.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/sse_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzSse({reinterpret_cast<const char*>(data), size});
  return 0;
}
