// Bytes of a stranger: the handshake's header and bodies, control messages in arbitrary pieces, and
// heartbeats.
#include <algorithm>

#include "collectives/control.h"
#include "collectives/handshake.h"
#include "collectives/rank_meter.h"
#include "runtime/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const unsigned char* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  (void)lockstep::ParseSealedHeader(bytes);
  (void)lockstep::ParseHello(bytes);
  (void)lockstep::ParseVerdict(bytes);
  if (const auto heartbeat = lockstep::ParseHeartbeat(bytes); heartbeat.ok()) {
    const std::vector<std::byte> again = lockstep::EncodeHeartbeat(*heartbeat);
    LOCKSTEP_CHECK(std::equal(again.begin(), again.end(), bytes.begin(), bytes.end()));
  }
  std::vector<std::byte> stream(bytes.begin(), bytes.end());
  lockstep::ControlFrame frame;
  while (true) {
    const lockstep::StatusOr<int> taken = lockstep::TakeFrame(&stream, &frame);
    if (!taken.ok() || *taken == 0) break;
    if (frame.type == lockstep::ControlType::kHeartbeat) (void)lockstep::ParseHeartbeat(frame.body);
  }
  return 0;
}
