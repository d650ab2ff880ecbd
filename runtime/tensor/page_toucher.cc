#include "runtime/tensor/page_toucher.h"

#include <algorithm>

#include "runtime/base/os.h"

namespace lockstep {

void PageToucher::Begin(std::span<std::byte> memory) {
  static constexpr size_t kStepBytes = size_t{8} << 20;  // so that an end comes soon
  thread_ = {};
  if (memory.size() <= kStepBytes) return;  // there before a thread would be
  thread_ = std::jthread([memory](const std::stop_token& stop) {
    for (size_t at = 0; at < memory.size() && !stop.stop_requested(); at += kStepBytes) {
      const auto step = memory.subspan(at, std::min(kStepBytes, memory.size() - at));
      if (!os::PopulatePages(step.data(), step.size())) return;
    }
  });
}

}  // namespace lockstep
