// Messages to and fro on one link, without anything around it: what a transport gives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "launcher/session.h"
#include "runtime/base/status.h"
#include "transport/link.h"

namespace lockstep {

// One end; the other is in the process of `peer`. Spins. Every wait ends by the exchange timeout or
// by a lost rank.
class PingPong {
 public:
  // Both must outlive it. Nothing else uses the link.
  PingPong(Link& link, Session& session, int peer) : link_(link), session_(session), peer_(peer) {}

  // Sends `data` and waits for it to come back, which is checked: half of the nanoseconds that this
  // took.
  StatusOr<int64_t> Ask(std::span<const std::byte> data);
  // The other end of Ask, for as many bytes.
  Status Answer(size_t bytes);

  // Polls for a while after the last message: over UC what was lost is repeated by polling only.
  Status Linger();

  // One message, one way.
  Status Send(std::span<const std::byte> data);
  Status Receive(std::span<std::byte> buffer);

 private:
  Status Spin();

  Link& link_;
  Session& session_;
  const int peer_;
  LinkProgress posted_;
  std::vector<std::byte> received_;
};

}  // namespace lockstep
