#include "collectives/slots.h"

#include "runtime/base/os.h"

namespace lockstep {

Slots::Slots(int ranks, size_t slot_bytes)
    : stride_((slot_bytes + 127) / 64 *
              64),  // one line of distance, so that slots do not share sets evenly
      total_(stride_ * static_cast<size_t>(ranks)),
      memory_(static_cast<std::byte*>(os::AllocatePages(total_))) {}

Slots::~Slots() {
  if (memory_ != nullptr) os::FreePages(memory_, total_);
}

}  // namespace lockstep
