// Hostile headers of rank files: parse or refuse, never crash, never allocate beyond the input.
#include <cstdint>
#include <string_view>

#include "tests/runtime/weights/shard_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  lockstep::FuzzShardHeader(std::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
