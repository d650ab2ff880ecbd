// Hostile GGUF files as models: what is read out of a sound container (architecture, config, names
// and stacks of tensors, tokenizer, chat template, defaults). Seeds: tests/fuzz/seeds/gguf_model.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/gguf_model_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)lockstep::FuzzGgufModel({reinterpret_cast<const char*>(data), size});
  return 0;
}
