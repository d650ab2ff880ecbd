// Hostile safetensors headers: parse or refuse, never crash, never allocate beyond the input.
#include <cstdint>
#include <string_view>

#include "runtime/weights/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)lockstep::ParseSafetensorsHeader(text, 8 + size + 4096, "fuzz.safetensors");
  return 0;
}
