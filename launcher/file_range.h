// A range of a file as a client asks for it, and its bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "runtime/base/file.h"

namespace lockstep {

struct FileRange {
  StridedRange pieces;
  std::string text;  // of Content-Range, for a file of `size` bytes
};

// What stands behind "Range: ": "bytes=FIRST-LAST" ("FIRST-", "-COUNT"), cut to a file of `size`
// bytes, or "strided=FIRST-BYTES-STRIDE-COUNT" (runtime/weights/http_answer.h). Nothing if it is
// anything else, of several ranges, empty or outside.
std::optional<FileRange> ParseFileRange(std::string_view text, uint64_t size);

// Reads pieces of an open file in order.
class PieceReader {
 public:
  PieceReader() = default;
  explicit PieceReader(const StridedRange& range) : left_(range) {}

  bool done() const { return left_.count == 0 || left_.bytes == 0; }
  // The next bytes, as many as fit into `out`; fewer than `out` has only at the end of the pieces.
  // 0, before it, if the file cannot be read or has become shorter.
  size_t Read(int fd, std::span<std::byte> out);

 private:
  size_t ReadOnce(int fd, std::span<std::byte> out);

  StridedRange left_{0, 0, 0, 0};
  uint64_t within_ = 0;  // bytes of the first of them that were read
};

}  // namespace lockstep
