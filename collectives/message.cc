#include "collectives/message.h"

#include "runtime/base/os.h"

namespace lockstep {
namespace {

std::string Describe(const MessageHeader& header) {
  return absl::StrFormat("%s %d of %d bytes (epoch %08x)",
                         header.kind() == MessageKind::kExchange  ? "exchange"
                         : header.kind() == MessageKind::kMessage ? "message"
                                                                  : "unknown message",
                         header.sequence, header.length(), header.epoch);
}

}  // namespace

Status CheckHeader(const MessageHeader& got, const MessageHeader& expected, const std::string& peer,
                   const std::string& self) {
  if (got.epoch == expected.epoch && got.sequence == expected.sequence &&
      got.kind_and_length == expected.kind_and_length) {
    return OkStatus();
  }
  return PeerLostError("%s sent %s where %s expects %s: the ranks are out of step", peer,
                       Describe(got), self, Describe(expected));
}

Slots::Slots(int ranks, size_t slot_bytes)
    : stride_((slot_bytes + 127) / 64 *
              64),  // one line of distance, so that slots do not share sets evenly
      total_(stride_ * static_cast<size_t>(ranks)),
      memory_(static_cast<std::byte*>(os::AllocatePages(total_))) {}

Slots::~Slots() {
  if (memory_ != nullptr) os::FreePages(memory_, total_);
}

}  // namespace lockstep
