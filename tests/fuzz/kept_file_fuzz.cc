// Hostile files of KV blocks: taken or refused, never a crash, never memory beyond the input.
#include <cstdint>
#include <string_view>

#include "tests/fuzz/kept_file_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)lockstep::FuzzKeptHeader(std::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
