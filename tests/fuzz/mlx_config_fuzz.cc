// Hostile settings of quantization, of MLX above all, beside hostile arrays: which arrays make up a
// tensor, in which format, and where its rows lie. A dictionary: mlx_config.dict.
#include <cstddef>
#include <cstdint>

#include "tests/fuzz/mlx_config_fuzz_body.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  (void)lockstep::FuzzMlxConfig({reinterpret_cast<const char*>(data), size});
  return 0;
}
