// Hostile model.safetensors.index.json, of a directory or of a server. A dictionary:
// safetensors_index.dict.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/safetensors_index_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzSafetensorsIndex({reinterpret_cast<const char*>(data), size});
  return 0;
}
