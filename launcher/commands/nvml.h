// What NVIDIA's management library (NVML, a part of the driver) says of the GPUs of this machine.
// It is loaded when it is asked for, so that the program runs where there is none, and spoken to
// by declarations of our own.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lockstep {

// Nothing, 0 and empty: the library or the GPU does not say.
struct GpuFacts {
  std::string name;  // "NVIDIA GB10"
  int capability_major = 0, capability_minor = 0;
  // Not of GPUs that share the host's memory.
  std::optional<uint64_t> memory_bytes, free_bytes;
  std::optional<uint64_t> megahertz, most_megahertz;  // of its processors, now and at most
  std::optional<uint64_t> memory_megahertz;
  std::optional<uint64_t> throttle_reasons;  // bits, as kThrottle says
  std::optional<bool> ecc;
  std::optional<uint64_t> uncorrected_errors;  // since the driver was loaded
  std::optional<uint64_t> pcie_generation, most_pcie_generation;
  std::optional<uint64_t> pcie_lanes, most_pcie_lanes;
  std::optional<bool> persistence;
  std::optional<uint64_t> milliwatts, most_milliwatts;
  std::optional<uint64_t> millijoules;  // since the driver was loaded
  std::optional<uint64_t> celsius;
  int nvlinks = 0;  // that are up
};

// Bits of GpuFacts::throttle_reasons.
struct ThrottleReason {
  static constexpr uint64_t kIdle = 0x1, kClocksSet = 0x2, kPowerLimit = 0x4, kHardware = 0x8,
                            kHeat = 0x20, kHardwareHeat = 0x40, kPowerBrake = 0x80;
};

struct GpuReport {
  bool has_library = false;  // whether there is one at all
  std::string problem;       // why it says nothing of GPUs, with what to do; empty: it does
  std::string driver;        // "580.95.05"
  int cuda_version = 0;      // the newest that the driver runs: 13000 is 13.0
  std::vector<GpuFacts> gpus;
};

// Of the library of this name or path. Waits at most `deadline_ms` for it: a GPU that hangs holds
// up whoever asks for it, and then a thread stays behind that still waits.
GpuReport ReadGpus(const std::string& library = "libnvidia-ml.so.1", int64_t deadline_ms = 10'000);

// A few lines.
std::vector<std::string> DescribeGpus(const GpuReport& report);

struct GpuFindings {
  std::vector<std::string> faults;  // each with what to do
  std::vector<std::string> notes;
};
// Pure. `nvidia_driver`: the kernel's module, as the system names it; empty: none is loaded.
GpuFindings ExamineGpus(const GpuReport& report, const std::string& nvidia_driver);

}  // namespace lockstep
