// Bytes of a stranger: the handshake's header and bodies, and control messages in arbitrary pieces.
#include "collectives/control.h"
#include "collectives/handshake.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  (void)lockstep::ParseSealedHeader(bytes);
  (void)lockstep::ParseHello(bytes);
  (void)lockstep::ParseVerdict(bytes);
  std::vector<std::byte> stream(bytes.begin(), bytes.end());
  lockstep::ControlFrame frame;
  while (true) {
    const lockstep::StatusOr<int> taken = lockstep::TakeFrame(&stream, &frame);
    if (!taken.ok() || *taken == 0) break;
  }
  return 0;
}
