// What tests/fuzz/gguf_fuzz.cc runs on one input; gguf_test.cc replays damaged files through it.
#pragma once

#include <string_view>

#include "runtime/base/check.h"
#include "runtime/base/gguf.h"

namespace lockstep {

// Any bytes as a file's beginning: a model error, a wish for more bytes, or tensors that lie in the
// file. The first byte says how much longer the file is than what is given.
inline void FuzzGguf(std::string_view data) {
  if (data.empty()) return;
  const uint64_t rest = static_cast<unsigned char>(data[0]) * uint64_t{512};
  data.remove_prefix(1);
  const uint64_t file_bytes = data.size() + rest;
  Gguf gguf;
  bool more = false;
  const Status status = ParseGgufBeginning(data, file_bytes, "fuzz.gguf", &gguf, &more);
  if (!status.ok()) {
    LOCKSTEP_CHECK(KindOf(status) == ErrorKind::kModel && !more);
    return;
  }
  LOCKSTEP_CHECK(!more || rest > 0);
  if (more) return;
  for (const auto& [name, tensor] : gguf.tensors) {
    LOCKSTEP_CHECK(FindGgufType(tensor.type) != nullptr && tensor.bytes > 0);
    LOCKSTEP_CHECK(tensor.offset < file_bytes && tensor.bytes <= file_bytes - tensor.offset);
  }
}

}  // namespace lockstep
