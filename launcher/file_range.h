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
  std::string text;  // what Content-Range says of it
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
  // The next bytes, as many as fit into `out`, or fewer where pieces are so small or so far apart
  // that those would take long: a call reads a few MiB at the most. 0 before the end if the file
  // cannot be read or has become shorter.
  size_t Read(int fd, std::span<std::byte> out);

 private:
  size_t ReadOnce(int fd, std::span<std::byte> out, uint64_t* read);

  StridedRange left_{0, 0, 0, 0};
  uint64_t within_ = 0;  // bytes of the first of them that were read
};

}  // namespace lockstep
