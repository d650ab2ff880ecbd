// Hostile files with lists of token ids (`lockstep logits`, `bench --tokens`).
#include <cstddef>
#include <cstdint>
#include <string>

#include "launcher/token_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)lockstep::ParseTokenLists(std::string(reinterpret_cast<const char*>(data), size),
                                  "fuzz.json");
  return 0;
}
