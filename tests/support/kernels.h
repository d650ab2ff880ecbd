// What the tests of kernels share: every backend beside `ref`, random numbers, distances.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/base/digest.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/timed_backend.h"
#include "tests/support/seed.h"

namespace lockstep::testing {

using Floats = std::vector<float>;

// `count` numbers and sixteen more, which kernels may read: sums of four even ones, hence nearly
// normal, with a deviation of 1.15 * scale. Exact, so that a seed gives the same numbers everywhere
// (the library's normal distribution takes logarithms).
inline Floats Random(std::mt19937_64& random, int64_t count, float scale = 1) {
  Floats values(static_cast<size_t>(count) + 16);
  for (float& value : values) {
    const uint64_t bits = random();
    int32_t sum = -131'070;
    for (int shift = 0; shift < 64; shift += 16)
      sum += static_cast<int32_t>(bits >> shift & 0xffff);
    value = static_cast<float>(sum) / 32768 * scale;
  }
  return values;
}

// Largest |a - b| over the largest |b|, or over that of `terms`, whose sums b may have cancelled.
inline double Difference(const Floats& a, const Floats& b, const Floats& terms = {}) {
  double largest = 1e-30, difference = 0;
  for (const float term : terms) largest = std::max(largest, std::fabs(double{term}));
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

// Six rows of four sequences over scattered pages of sixteen positions; one sequence is three
// chunks of softmax long, and three rows are of another one.
struct ScatteredRows {
  static constexpr int64_t kRows = 6, kBlocks = 80, kBlockTokens = 16;

  // The rows from `first` on.
  template <typename Args>
  static void Into(Args& args, int64_t first) {
    static const std::vector<int32_t> positions = {0, 600, 255, 256, 257, 33};
    static const std::vector<int32_t> sequences = {0, 1, 2, 2, 2, 3};
    static const std::vector<int32_t> tables[] = {
        {70}, BlocksDown(60, 38), BlocksDown(20, 17), {2, 71, 0}};
    static const int32_t* const pointers[] = {tables[0].data(), tables[1].data(), tables[2].data(),
                                              tables[3].data()};
    args.positions = positions.data() + first;
    args.sequences = sequences.data() + first;
    args.block_tables = pointers;
  }

 private:
  // The blocks first, first - 1, ...: a table that is not in order.
  static std::vector<int32_t> BlocksDown(int32_t first, int32_t count) {
    std::vector<int32_t> blocks;
    for (int32_t i = 0; i < count; ++i) blocks.push_back(first - i);
    return blocks;
  }
};

template <typename T>
uint64_t BitsOf(const std::vector<T>& values) {
  return DigestOf(values.data(), values.size());
}

// What `bits_of(backend, queue)` gives, a vector of BitsOf of results, is the same on every
// instruction set of this processor that has fused multiply-add, and the same as on the processor
// where `digest` was taken of it. That one changes only with the specified arithmetic
// (docs/numerics.md).
template <typename Bits>
void ExpectSameBitsOnEverySet(uint64_t digest, const Bits& bits_of) {
  ThreadPool pool(2);
  kernels::Queue queue{&pool};
  std::vector<uint64_t> first;
  for (const char* set :
       {"cpu/avx512vnni", "cpu/avx512", "cpu/avx2", "cpu/i8mm", "cpu/dotprod", "cpu/neon"}) {
    const auto backend = kernels::MakeBackend(set, kernels::Precision::kFast);
    if (!backend.ok()) continue;
    const std::vector<uint64_t> bits = bits_of(**backend, queue);
    if (first.empty()) first = bits;
    EXPECT_EQ(bits, first) << set;
    EXPECT_EQ(BitsOf(bits), digest) << set << std::hex << ": 0x" << BitsOf(bits);
  }
}

// The backend of a parameter: one of MakeBackend's names, or a device's ("cuda:0"). Its ops are
// done when they return: TimedBackend waits for them.
inline StatusOr<std::unique_ptr<kernels::Backend>> MakeNamed(std::string_view name) {
  if (name.substr(0, 5) != "cuda:") return kernels::MakeBackend(name);
  LOCKSTEP_ASSIGN_OR_RETURN(const kernels::DeviceName device,
                            kernels::ParseDevice(name, "a test's parameter"));
  LOCKSTEP_ASSIGN_OR_RETURN(auto made,
                            kernels::MakeBackendOn(device, "auto", kernels::Precision::kExact));
  return std::make_unique<kernels::TimedBackend>(std::move(made));
}

// The names, and those of the devices that this program finds: GPUs, or emulated ones.
inline std::vector<const char*> WithDevices(std::vector<const char*> names) {
  for (const char* device : {"cuda:0", "cuda:1"})
    if (MakeNamed(device).ok()) names.push_back(device);
  return names;
}

// A parameter names a backend; tests of a set that the processor lacks are skipped.
class BackendTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    StatusOr<std::unique_ptr<kernels::Backend>> made = MakeNamed(GetParam());
    if (!made.ok()) GTEST_SKIP() << made.status();
    backend_ = std::move(*made);
  }
  void TearDown() override {
    if (backend_ == nullptr) return;
    const Status finished = backend_->Finish(queue_);
    EXPECT_TRUE(finished.ok()) << finished;
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
  for (const char sign : {'/', ':'}) std::replace(name.begin(), name.end(), sign, '_');
  return name;
}

}  // namespace lockstep::testing
