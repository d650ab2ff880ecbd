// How fast requests end, to tell those that are refused when to come again.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>

namespace lockstep {

class FinishRate {
 public:
  static constexpr size_t kLast = 32;
  static constexpr int64_t kMostSeconds = 60;

  void Add(int64_t now_ns) {
    ends_.push_back(now_ns);
    if (ends_.size() > kLast) ends_.pop_front();
  }
  // Until so many requests have ended at the pace of the last ones, 1 .. kMostSeconds. A pace that
  // slows down shows before the next one ends. Without two ends nothing is known: 1.
  int64_t SecondsFor(int64_t requests, int64_t now_ns) const {
    if (ends_.size() < 2) return 1;
    const double each =
        static_cast<double>(now_ns - ends_.front()) * 1e-9 / static_cast<double>(ends_.size() - 1);
    const double seconds = std::ceil(each * static_cast<double>(requests));
    return static_cast<int64_t>(std::clamp(seconds, 1.0, static_cast<double>(kMostSeconds)));
  }

 private:
  std::deque<int64_t> ends_;
};

}  // namespace lockstep
