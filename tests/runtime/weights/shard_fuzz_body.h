// What tests/fuzz/shard_file_fuzz.cc runs on one input; shard_file_test.cc replays damaged headers
// through it.
#pragma once

#include <string_view>

#include "runtime/base/check.h"
#include "runtime/weights/shard_file.h"

namespace lockstep {

// Any bytes as a header: a model error, or tensors whose slices lie in the file.
inline void FuzzShardHeader(std::string_view text) {
  const uint64_t file_bytes = kShardPreambleBytes + text.size() + 65536;
  const StatusOr<ShardHeader> header = ParseShardHeader(text, file_bytes, "fuzz.lockstep");
  if (!header.ok()) {
    LOCKSTEP_CHECK(KindOf(header.status()) == ErrorKind::kModel);
    return;
  }
  LOCKSTEP_CHECK(header->rank >= 0 && header->rank < header->ranks());
  for (const ShardTensor& tensor : header->tensors) {
    LOCKSTEP_CHECK(tensor.bytes <= file_bytes);
    LOCKSTEP_CHECK(tensor.bytes == 0 || tensor.offset <= file_bytes - tensor.bytes);
    LOCKSTEP_CHECK(ShardRowBytes(tensor) * static_cast<uint64_t>(ShardRows(tensor)) ==
                   tensor.bytes);
  }
}

}  // namespace lockstep
