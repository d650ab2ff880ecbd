// Where random tests begin. The same numbers on every run, so that a red suite is one that a change
// made red; LOCKSTEP_TEST_SEED=N begins elsewhere, LOCKSTEP_TEST_SEED=random somewhere else each
// time (deploy/test-full.sh does). The number is printed: a failure is replayed by setting it.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string_view>

namespace lockstep::testing {

inline uint64_t TestSeed() {
  static const uint64_t seed = [] {
    const char* wanted = std::getenv("LOCKSTEP_TEST_SEED");
    uint64_t value = 1;
    if (wanted != nullptr) {
      value = std::string_view(wanted) == "random" ? std::random_device{}()
                                                   : std::strtoull(wanted, nullptr, 10);
    }
    std::printf("LOCKSTEP_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

}  // namespace lockstep::testing
