#include "tests/launcher/commands/fake_nvml.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace {

using lockstep::testing::FakeGpu;
using lockstep::testing::FakeNvml;

constexpr int kSuccess = 0, kInvalid = 2, kNotSupported = 3;

FakeNvml& Fake() {
  static FakeNvml fake;
  return fake;
}

// A device's handle is its number and one.
const FakeGpu& Of(const void* device) {
  return Fake().gpus[reinterpret_cast<std::uintptr_t>(device) - 1];
}

int Say(const std::string& text, char* to, unsigned bytes) {
  if (text.size() >= bytes) return kInvalid;
  std::memcpy(to, text.c_str(), text.size() + 1);
  return kSuccess;
}

template <typename T>
int Say(T value, T* to) {
  *to = value;
  return kSuccess;
}

}  // namespace

extern "C" {

FakeNvml* lockstep_fake_nvml() { return &Fake(); }

int nvmlInit_v2() {
  while (Fake().hangs) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  return Fake().init_result;
}
int nvmlShutdown() { return kSuccess; }
int nvmlSystemGetDriverVersion(char* to, unsigned bytes) { return Say("580.95.05", to, bytes); }
int nvmlSystemGetCudaDriverVersion_v2(int* to) { return Say(13000, to); }
int nvmlDeviceGetCount_v2(unsigned* to) {
  return Say(static_cast<unsigned>(Fake().gpus.size()), to);
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void** to) {
  if (index >= Fake().gpus.size()) return kInvalid;
  *to = reinterpret_cast<void*>(std::uintptr_t{index} + 1);
  return kSuccess;
}
int nvmlDeviceGetName(void* device, char* to, unsigned bytes) {
  return Say(Of(device).name, to, bytes);
}
int nvmlDeviceGetCudaComputeCapability(void* device, int* major, int* minor) {
  *minor = Of(device).minor;
  return Say(Of(device).major, major);
}
int nvmlDeviceGetMemoryInfo(void* device, unsigned long long* to) {
  if (Of(device).total == 0) return kNotSupported;
  to[0] = Of(device).total;
  to[1] = Of(device).free;
  to[2] = Of(device).total - Of(device).free;
  return kSuccess;
}
int nvmlDeviceGetClockInfo(void* device, unsigned which, unsigned* to) {
  return Say(which == 1 ? Of(device).megahertz : Of(device).memory_megahertz, to);
}
int nvmlDeviceGetMaxClockInfo(void* device, unsigned, unsigned* to) {
  return Say(Of(device).most_megahertz, to);
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void* device, unsigned long long* to) {
  return Say(Of(device).throttle, to);
}
int nvmlDeviceGetPowerUsage(void* device, unsigned* to) { return Say(Of(device).milliwatts, to); }
int nvmlDeviceGetEnforcedPowerLimit(void* device, unsigned* to) {
  return Say(Of(device).most_milliwatts, to);
}
// nvmlDeviceGetTotalEnergyConsumption is not here: an older driver has not all functions.
int nvmlDeviceGetTemperature(void* device, int, unsigned* to) {
  return Say(Of(device).celsius, to);
}
int nvmlDeviceGetEccMode(void* device, int* current, int* pending) {
  if (Of(device).ecc < 0) return kNotSupported;
  *pending = 0;
  return Say(Of(device).ecc, current);
}
int nvmlDeviceGetTotalEccErrors(void* device, int, int, unsigned long long* to) {
  return Say(Of(device).uncorrected, to);
}
int nvmlDeviceGetCurrPcieLinkGeneration(void* device, unsigned* to) {
  return Say(Of(device).generation, to);
}
int nvmlDeviceGetMaxPcieLinkGeneration(void* device, unsigned* to) {
  return Say(Of(device).most_generation, to);
}
int nvmlDeviceGetCurrPcieLinkWidth(void* device, unsigned* to) { return Say(Of(device).lanes, to); }
int nvmlDeviceGetMaxPcieLinkWidth(void* device, unsigned* to) {
  return Say(Of(device).most_lanes, to);
}
int nvmlDeviceGetPersistenceMode(void* device, unsigned* to) {
  return Say(Of(device).persistence, to);
}
int nvmlDeviceGetNvLinkState(void* device, unsigned link, unsigned* to) {
  return Say(link < Of(device).nvlinks ? 1u : 0u, to);
}

}  // extern "C"
