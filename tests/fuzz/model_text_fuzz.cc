// Hostile generation_config.json, tokenizer_config.json and config.json, as far as text asks them.
// Seeds: tests/fuzz/seeds/model_text.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/model_text_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)lockstep::FuzzModelText({reinterpret_cast<const char*>(data), size});
  return 0;
}
