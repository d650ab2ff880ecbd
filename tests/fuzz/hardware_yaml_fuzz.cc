// Any bytes as a file of hardware: an error or checked figures, never a crash.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/hardware_yaml_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzHardwareYaml({reinterpret_cast<const char*>(data), size});
  return 0;
}
