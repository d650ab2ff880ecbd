// What safetensors_index_fuzz runs, also over its seeds in tests/runtime/weights.
#pragma once

#include <string_view>

#include "runtime/base/check.h"
#include "runtime/weights/safetensors.h"

namespace lockstep {

// Refused, or every tensor in a file of the index's directory.
inline void FuzzSafetensorsIndex(std::string_view text) {
  const auto files = ParseSafetensorsIndex(text, kSafetensorsIndex);
  if (!files.ok()) {
    LOCKSTEP_CHECK(KindOf(files.status()) == ErrorKind::kModel);
    return;
  }
  LOCKSTEP_CHECK(files->size() <= kMostTensors);
  for (const auto& [tensor, file] : *files) LOCKSTEP_CHECK(IsPlainFileName(file));
}

}  // namespace lockstep
