// What precedes every message between two ranks, and the memory that exchanges use. See
// docs/wire.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

enum class MessageKind : uint8_t { kExchange = 1, kMessage = 2 };

struct MessageHeader {
  uint32_t epoch = 0;  // of the group: the same on all its ranks, different from its predecessor's
  uint32_t sequence = 0;         // of this direction between these two ranks, from 0, wrapping
  uint64_t kind_and_length = 0;  // kind << 56 | payload bytes

  static MessageHeader Make(uint32_t epoch, uint32_t sequence, MessageKind kind, size_t bytes) {
    return {epoch, sequence, static_cast<uint64_t>(kind) << 56 | bytes};
  }
  uint64_t length() const { return kind_and_length & ((uint64_t{1} << 56) - 1); }
  MessageKind kind() const { return static_cast<MessageKind>(kind_and_length >> 56); }
  std::span<const std::byte> bytes() const {
    return {reinterpret_cast<const std::byte*>(this), sizeof(*this)};
  }
  std::span<std::byte> bytes() { return {reinterpret_cast<std::byte*>(this), sizeof(*this)}; }
};
static_assert(sizeof(MessageHeader) == 16);

// Ok if `got` is what was expected; else a PeerLost error that names both ranks and both messages.
Status CheckHeader(const MessageHeader& got, const MessageHeader& expected, const std::string& peer,
                   const std::string& self);

// One 64-byte aligned slot per rank, in one allocation made at start.
class Slots {
 public:
  Slots(int ranks, size_t slot_bytes);
  ~Slots();
  Slots(const Slots&) = delete;
  Slots& operator=(const Slots&) = delete;
  bool valid() const { return memory_ != nullptr; }
  std::span<std::byte> Of(int rank, size_t bytes) const {
    return {memory_ + static_cast<size_t>(rank) * stride_, bytes};
  }

 private:
  size_t stride_;
  size_t total_;
  std::byte* memory_;
};

}  // namespace lockstep
