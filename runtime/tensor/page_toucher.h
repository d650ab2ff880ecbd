// Memory that is there when it is needed.
#pragma once

#include <cstddef>
#include <span>
#include <thread>

namespace lockstep {

// Has memory put behind the pages of a buffer by a thread of its own, ahead of whoever fills it:
// where memory comes slowly, as in virtual machines, it comes while a disk is read.
class PageToucher {
 public:
  // Begins with `memory`, whole pages of a buffer that lives until the next call or the end of
  // this; leaves the rest of the one before.
  void Begin(std::span<std::byte> memory);

 private:
  std::jthread thread_;
};

}  // namespace lockstep
