// Percentiles of many numbers in little memory, the same on every machine.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <map>

namespace lockstep {

// Numbers from 0 on. Each falls into a bucket that is 1/256 of a power of two wide, so that what At
// says is within 0.2 % of a number that was added.
class Percentiles {
 public:
  void Add(double value) {
    ++buckets_[BucketOf(std::max(value, 0.0))];
    ++count_;
    sum_ += value;
  }
  void Add(const Percentiles& other) {
    for (const auto& [bucket, count] : other.buckets_) buckets_[bucket] += count;
    count_ += other.count_;
    sum_ += other.sum_;
  }

  uint64_t count() const { return count_; }
  double mean() const { return count_ > 0 ? sum_ / static_cast<double>(count_) : 0; }
  // The least number of which at least `part` (0 .. 1) of all are no larger; 0 if there are none.
  double At(double part) const {
    const auto wanted =
        static_cast<uint64_t>(std::clamp(std::ceil(part * static_cast<double>(count_)), 1.0, 1e18));
    uint64_t seen = 0;
    for (const auto& [bucket, count] : buckets_) {
      seen += count;
      if (seen >= wanted) return Middle(bucket);
    }
    return 0;
  }

 private:
  static constexpr int kShift = 52 - 8;  // eight bits of a double's fraction stay

  static uint64_t BucketOf(double value) { return std::bit_cast<uint64_t>(value + 0.0) >> kShift; }
  static double Middle(uint64_t bucket) {
    if (bucket == 0) return 0;
    return std::bit_cast<double>((bucket << kShift) + (uint64_t{1} << (kShift - 1)));
  }

  std::map<uint64_t, uint64_t> buckets_;
  uint64_t count_ = 0;
  double sum_ = 0;
};

}  // namespace lockstep
