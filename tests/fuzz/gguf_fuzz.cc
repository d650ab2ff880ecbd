// Hostile GGUF headers: parse or refuse, never crash, never allocate beyond the input. Seeds: the
// first 64 KiB of tests/goldens/models/*.gguf behind one byte.
#include "tests/runtime/base/gguf_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzGguf({reinterpret_cast<const char*>(data), size});
  return 0;
}
