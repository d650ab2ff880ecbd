// A management library of NVIDIA's that says what a test wants: fake_nvml.cc, which the build makes
// a shared library of, as the driver's is one.
#pragma once

#include <atomic>
#include <string>
#include <vector>

namespace lockstep::testing {

struct FakeGpu {
  std::string name = "NVIDIA Test";
  int major = 9, minor = 0;
  unsigned long long total = 0, free = 0;  // 0: not supported, as on GB10
  unsigned megahertz = 1980, most_megahertz = 1980, memory_megahertz = 2619;
  unsigned long long throttle = 0;
  int ecc = -1;  // -1: not supported
  unsigned long long uncorrected = 0;
  unsigned generation = 5, most_generation = 5, lanes = 16, most_lanes = 16;
  unsigned persistence = 1;
  unsigned milliwatts = 100'000, most_milliwatts = 700'000;
  unsigned celsius = 40, nvlinks = 0;
};

struct FakeNvml {
  int init_result = 0;
  std::atomic<bool> hangs{false};
  std::vector<FakeGpu> gpus;
};

}  // namespace lockstep::testing
