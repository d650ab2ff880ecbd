// Hostile model.safetensors.index.json, of a directory or of a server: refused, or every tensor in
// a file of that directory.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "runtime/base/check.h"
#include "runtime/weights/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lockstep;
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto files = ParseSafetensorsIndex(text, kSafetensorsIndex);
  if (!files.ok()) {
    LOCKSTEP_CHECK(KindOf(files.status()) == ErrorKind::kModel);
    return 0;
  }
  LOCKSTEP_CHECK(files->size() <= kMostTensors);
  for (const auto& [tensor, file] : *files) LOCKSTEP_CHECK(IsPlainFileName(file));
  return 0;
}
