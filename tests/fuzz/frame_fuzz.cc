// A peer's stream in arbitrary pieces: only the announced bytes reach the buffers, and nothing
// beyond what was asked for. The first byte says how large the pieces are.
#include <algorithm>
#include <cstring>
#include <vector>

#include "runtime/base/check.h"
#include "transport/frame.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  using namespace lockstep;
  if (size == 0) return 0;
  const size_t piece = 1 + data[0];
  ++data, --size;
  constexpr size_t kBytes[] = {0, 1, 64, 100};
  std::vector<std::byte> buffers[std::size(kBytes)];
  FrameReceiver receiver;
  for (size_t i = 0; i < std::size(kBytes); ++i) {
    buffers[i].resize(kBytes[i]);
    const FrameKind kind = i % 2 == 0 ? FrameKind::kPut : FrameKind::kMessage;
    receiver.Push({.kind = kind, .offset = i, .bytes = kBytes[i]}, buffers[i]);
  }
  while (size > 0 && !receiver.empty()) {
    iovec parts[3];
    const size_t count = receiver.Parts(parts);
    LOCKSTEP_CHECK(count > 0 && count <= std::size(parts));
    size_t moved = 0;
    for (size_t i = 0; i < count; ++i) {
      const size_t taken = std::min({parts[i].iov_len, size, piece - moved});
      if (taken > 0) std::memcpy(parts[i].iov_base, data, taken);
      data += taken, size -= taken, moved += taken;
    }
    if (!receiver.Advance(moved).ok()) return 0;
  }
  LOCKSTEP_CHECK(!receiver.empty() || (receiver.puts() == 2 && receiver.messages() == 2));
  return 0;
}
