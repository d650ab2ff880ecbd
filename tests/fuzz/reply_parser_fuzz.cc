#include "tests/runtime/text/fuzz_bodies.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzReplyParser({reinterpret_cast<const char*>(data), size});
  return 0;
}
