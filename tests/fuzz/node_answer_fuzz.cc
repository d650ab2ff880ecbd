// Any bytes as what a node answers to up, down and status: an error or facts, never a crash.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/node_answer_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzNodeAnswer({reinterpret_cast<const char*>(data), size});
  return 0;
}
