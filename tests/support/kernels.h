// What the tests of kernels share: every backend beside `ref`, random numbers, distances.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/kernels/backend.h"
#include "tests/support/seed.h"

namespace lockstep::testing {

using Floats = std::vector<float>;

// `count` numbers and sixteen more, which kernels may read.
inline Floats Random(std::mt19937_64& random, int64_t count, float scale = 1) {
  std::normal_distribution<float> normal(0, scale);
  Floats values(static_cast<size_t>(count) + 16);
  for (float& value : values) value = normal(random);
  return values;
}

// Largest |a - b| over the largest |b|.
inline double Difference(const Floats& a, const Floats& b) {
  double largest = 1e-30, difference = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    largest = std::max(largest, std::fabs(double{b[i]}));
    difference = std::max(difference, std::fabs(double{a[i]} - b[i]));
    if (std::isnan(a[i]) != std::isnan(b[i])) return INFINITY;
  }
  return difference / largest;
}

inline constexpr kernels::CacheType kCacheTypes[] = {
    kernels::CacheType::kF32, kernels::CacheType::kBF16, kernels::CacheType::kF16,
    kernels::CacheType::kQ8};

// Scratch for attention with `args` on a queue's threads; NaN, so that nothing is read unwritten.
template <typename Args>
Floats ScratchFor(const Args& args, const kernels::Queue& queue) {
  return Floats(static_cast<size_t>(kernels::ScratchOf(args, queue.pool->count()).floats()), NAN);
}

// The blocks first, first - 1, ...: a table that is not in order.
inline std::vector<int32_t> BlocksDown(int32_t first, int32_t count) {
  std::vector<int32_t> blocks;
  for (int32_t i = 0; i < count; ++i) blocks.push_back(first - i);
  return blocks;
}

// A parameter names a backend; tests of a set that the processor lacks are skipped.
class BackendTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    StatusOr<std::unique_ptr<kernels::Backend>> made = kernels::MakeBackend(GetParam());
    if (!made.ok()) GTEST_SKIP() << made.status();
    backend_ = std::move(*made);
  }
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<kernels::Backend> ref_ = kernels::MakeRefBackend();
  ThreadPool one_{1};
  ThreadPool three_{3};
  kernels::Queue queue_{&three_};
  kernels::Queue single_{&one_};
  std::mt19937_64 random_{TestSeed()};
};

inline std::string BackendName(const ::testing::TestParamInfo<const char*>& info) {
  std::string name = info.param;
  std::replace(name.begin(), name.end(), '/', '_');
  return name;
}

}  // namespace lockstep::testing
