// Hostile GGUF headers: parse or refuse, never crash, never allocate beyond the input. Seeds:
// tests/fuzz/seeds/gguf.
#include "tests/runtime/base/gguf_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzGguf({reinterpret_cast<const char*>(data), size});
  return 0;
}
