// Any bytes as what `lockstep bench steps --json` printed: an error or figures, never a crash.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/mode_report_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzModeReport({reinterpret_cast<const char*>(data), size});
  return 0;
}
