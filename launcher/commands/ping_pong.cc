#include "launcher/commands/ping_pong.h"

#include <cstring>

#include "runtime/base/clock.h"

namespace lockstep {
namespace {

constexpr uint32_t kPollsPerLook = 4096;
constexpr int64_t kLingerMs = 20;

}  // namespace

StatusOr<int64_t> PingPong::Ask(std::span<const std::byte> data) {
  received_.resize(data.size());
  const int64_t start_ns = NowNs();
  LOCKSTEP_RETURN_IF_ERROR(Send(data));
  LOCKSTEP_RETURN_IF_ERROR(Receive(received_));
  const int64_t took_ns = NowNs() - start_ns;
  if (std::memcmp(received_.data(), data.data(), data.size()) != 0) {
    return InternalError("%d bytes came back changed from %s over %s", data.size(),
                         session_.membership().ranks()[peer_].Name(), link_.traits().name);
  }
  return took_ns / 2;
}

Status PingPong::Answer(size_t bytes) {
  received_.resize(bytes);
  LOCKSTEP_RETURN_IF_ERROR(Receive(received_));
  return Send(received_);
}

Status PingPong::Send(std::span<const std::byte> data) {
  ++posted_.sends;
  LOCKSTEP_RETURN_IF_ERROR(link_.PostSend(data, 0));
  return Spin();
}

Status PingPong::Receive(std::span<std::byte> buffer) {
  ++posted_.receives;
  LOCKSTEP_RETURN_IF_ERROR(link_.PostReceive(buffer));
  return Spin();
}

Status PingPong::Linger() {
  const Deadline end = Deadline::After(kLingerMs);
  while (!end.Passed()) LOCKSTEP_RETURN_IF_ERROR(link_.Poll().status());
  return OkStatus();
}

Status PingPong::Spin() {
  const int64_t timeout_ms = session_.options().exchange_timeout_ms;
  int64_t start_ns = 0;
  for (uint32_t looks = 1;; ++looks) {
    LOCKSTEP_ASSIGN_OR_RETURN(const LinkProgress done, link_.Poll());
    if (done.sends >= posted_.sends && done.receives >= posted_.receives) return OkStatus();
    if (looks % kPollsPerLook != 0) continue;
    LOCKSTEP_RETURN_IF_ERROR(session_.membership().Health());
    if (start_ns == 0) start_ns = NowNs();
    if (NowNs() - start_ns > timeout_ms * 1'000'000) {
      return PeerLostError("%s answered no ping for %d ms; see --exchange-timeout-ms",
                           session_.membership().ranks()[peer_].Name(), timeout_ms);
    }
  }
}

}  // namespace lockstep
