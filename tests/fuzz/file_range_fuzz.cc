// Ranges that clients ask for: one that is let pass lies in the file and names what it gives. The
// first bytes say how large the file is.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "launcher/file_range.h"
#include "runtime/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace lockstep;
  uint64_t file_bytes = 0;
  if (size < sizeof file_bytes) return 0;
  std::memcpy(&file_bytes, data, sizeof file_bytes);
  file_bytes >>= file_bytes % 64;
  const std::string_view text(reinterpret_cast<const char*>(data) + 8, size - 8);
  const std::optional<FileRange> range = ParseFileRange(text, file_bytes);
  if (!range.has_value()) return 0;
  const StridedRange& pieces = range->pieces;
  LOCKSTEP_CHECK(pieces.bytes > 0 && pieces.count > 0 && pieces.offset < file_bytes);
  LOCKSTEP_CHECK(pieces.count == 1 || pieces.stride >= pieces.bytes);
  const uint64_t room = file_bytes - pieces.offset;
  LOCKSTEP_CHECK(pieces.bytes <= room);
  LOCKSTEP_CHECK(pieces.count == 1 || (room - pieces.bytes) / pieces.stride >= pieces.count - 1);
  LOCKSTEP_CHECK(pieces.total() <= file_bytes && !range->text.empty());
  return 0;
}
