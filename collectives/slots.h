// The memory of exchanges where the transport does not bring its own: one 64-byte aligned slot per
// rank, in one allocation made at start.
#pragma once

#include <cstddef>
#include <span>

namespace lockstep {

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
