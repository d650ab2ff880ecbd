// Any bytes as what doctor and bench printed: an error or measures, never a crash.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/measured_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzMeasured({reinterpret_cast<const char*>(data), size});
  return 0;
}
