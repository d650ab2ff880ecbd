#include "launcher/commands/nvml.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <thread>

#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

// What is used of NVML, as its documentation declares it. All of its functions give a number, 0
// for success.
using Device = struct nvmlDevice_st*;
using Result = int;
constexpr Result kSuccess = 0, kDriverNotLoaded = 9, kVersionMismatch = 18;
constexpr unsigned kMultiprocessorClock = 1, kMemoryClock = 2;
constexpr int kUncorrected = 1, kSinceLoaded = 0;
constexpr int kTemperatureOfGpu = 0;
constexpr unsigned kMostNvlinks = 18, kMostGpus = 64;
constexpr unsigned kTextBytes = 96;

struct Memory {
  unsigned long long total, free, used;  // NOLINT: as NVML declares it
};

class Library {
 public:
  // Stays loaded: a call that hangs may still be inside.
  explicit Library(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW)) {}
  bool loaded() const { return handle_ != nullptr; }

  // Calls the function of that name; kNoFunction if the library has none.
  static constexpr Result kNoFunction = -1;
  template <typename... Arguments>
  Result Call(const char* name, Arguments... arguments) const {
    void* function = dlsym(handle_, name);
    if (function == nullptr) return kNoFunction;
    return reinterpret_cast<Result (*)(Arguments...)>(function)(arguments...);
  }

  std::optional<uint64_t> Number(const char* name, Device device) const {
    unsigned number = 0;
    return Call(name, device, &number) == kSuccess ? std::optional<uint64_t>(number) : std::nullopt;
  }
  std::optional<uint64_t> Number(const char* name, Device device, unsigned which) const {
    unsigned number = 0;
    if (Call(name, device, which, &number) != kSuccess) return std::nullopt;
    return number;
  }
  std::optional<uint64_t> Long(const char* name, Device device) const {
    unsigned long long number = 0;  // NOLINT: as NVML declares it
    return Call(name, device, &number) == kSuccess ? std::optional<uint64_t>(number) : std::nullopt;
  }
  template <typename... Before>
  std::string Text(const char* name, Before... before) const {
    char text[kTextBytes] = {};
    if (Call(name, before..., static_cast<char*>(text), kTextBytes) != kSuccess) return "";
    text[kTextBytes - 1] = '\0';
    return text;
  }

 private:
  void* handle_;
};

void ReadState(const Library& nvml, Device device, GpuFacts* gpu) {
  gpu->megahertz = nvml.Number("nvmlDeviceGetClockInfo", device, kMultiprocessorClock);
  gpu->most_megahertz = nvml.Number("nvmlDeviceGetMaxClockInfo", device, kMultiprocessorClock);
  gpu->memory_megahertz = nvml.Number("nvmlDeviceGetClockInfo", device, kMemoryClock);
  gpu->throttle_reasons = nvml.Long("nvmlDeviceGetCurrentClocksThrottleReasons", device);
  if (!gpu->throttle_reasons.has_value())
    gpu->throttle_reasons = nvml.Long("nvmlDeviceGetCurrentClocksEventReasons", device);
  gpu->milliwatts = nvml.Number("nvmlDeviceGetPowerUsage", device);
  gpu->most_milliwatts = nvml.Number("nvmlDeviceGetEnforcedPowerLimit", device);
  gpu->millijoules = nvml.Long("nvmlDeviceGetTotalEnergyConsumption", device);
  gpu->celsius = nvml.Number("nvmlDeviceGetTemperature", device, kTemperatureOfGpu);
}

GpuFacts ReadGpu(const Library& nvml, Device device) {
  GpuFacts gpu;
  gpu.name = nvml.Text("nvmlDeviceGetName", device);
  (void)nvml.Call("nvmlDeviceGetCudaComputeCapability", device, &gpu.capability_major,
                  &gpu.capability_minor);
  Memory memory = {};
  if (nvml.Call("nvmlDeviceGetMemoryInfo", device, &memory) == kSuccess) {
    gpu.memory_bytes = memory.total;
    gpu.free_bytes = memory.free;
  }
  ReadState(nvml, device, &gpu);
  int current = 0, pending = 0;
  if (nvml.Call("nvmlDeviceGetEccMode", device, &current, &pending) == kSuccess)
    gpu.ecc = current != 0;
  unsigned long long errors = 0;  // NOLINT: as NVML declares it
  if (nvml.Call("nvmlDeviceGetTotalEccErrors", device, kUncorrected, kSinceLoaded, &errors) ==
      kSuccess) {
    gpu.uncorrected_errors = errors;
  }
  gpu.pcie_generation = nvml.Number("nvmlDeviceGetCurrPcieLinkGeneration", device);
  gpu.most_pcie_generation = nvml.Number("nvmlDeviceGetMaxPcieLinkGeneration", device);
  gpu.pcie_lanes = nvml.Number("nvmlDeviceGetCurrPcieLinkWidth", device);
  gpu.most_pcie_lanes = nvml.Number("nvmlDeviceGetMaxPcieLinkWidth", device);
  if (const auto mode = nvml.Number("nvmlDeviceGetPersistenceMode", device); mode.has_value())
    gpu.persistence = *mode != 0;
  for (unsigned link = 0; link < kMostNvlinks; ++link)
    gpu.nvlinks += nvml.Number("nvmlDeviceGetNvLinkState", device, link).value_or(0) == 1 ? 1 : 0;
  return gpu;
}

std::string ProblemOf(Result result) {
  if (result == kDriverNotLoaded) {
    return "NVIDIA's driver is installed but not loaded: sudo modprobe nvidia, and `dmesg` if that "
           "fails (after an update of the kernel the driver must be built again: dkms autoinstall)";
  }
  if (result == kVersionMismatch) {
    return "the parts of NVIDIA's driver are of two versions, as after an update: restart the "
           "machine";
  }
  return absl::StrFormat(
      "NVIDIA's driver says nothing of its GPUs (error %d of NVML): does nvidia-smi work?", result);
}

GpuReport Ask(const std::string& path) {
  GpuReport report;
  const Library nvml(path);
  report.has_library = nvml.loaded();
  if (!report.has_library) return report;
  if (const Result result = nvml.Call("nvmlInit_v2"); result != kSuccess) {
    report.problem = ProblemOf(result);
    return report;
  }
  report.driver = nvml.Text("nvmlSystemGetDriverVersion");
  (void)nvml.Call("nvmlSystemGetCudaDriverVersion_v2", &report.cuda_version);
  unsigned count = 0;
  if (const Result result = nvml.Call("nvmlDeviceGetCount_v2", &count); result != kSuccess)
    report.problem = ProblemOf(result);
  for (unsigned index = 0; index < std::min(count, kMostGpus); ++index) {
    Device device = nullptr;
    const Result result = nvml.Call("nvmlDeviceGetHandleByIndex_v2", index, &device);
    report.gpus.push_back(result == kSuccess ? ReadGpu(nvml, device) : GpuFacts{});
    if (result == kSuccess) continue;
    report.problem = absl::StrFormat(
        "GPU %d does not answer (error %d of NVML): `dmesg | grep -i xid` says why, and a restart "
        "of "
        "the machine mends it",
        index, result);
  }
  (void)nvml.Call("nvmlShutdown");
  return report;
}

}  // namespace

GpuReport ReadGpus(const std::string& library, int64_t deadline_ms) {
  std::packaged_task<GpuReport()> task([library] { return Ask(library); });
  std::future<GpuReport> answer = task.get_future();
  std::thread(std::move(task)).detach();
  if (answer.wait_for(std::chrono::milliseconds(deadline_ms)) == std::future_status::ready)
    return answer.get();
  GpuReport report;
  report.has_library = true;
  report.problem = absl::StrFormat(
      "NVIDIA's driver has not answered within %d ms, so that a GPU hangs: `dmesg | grep -i xid` "
      "says which, and a restart of the machine mends it",
      deadline_ms);
  return report;
}

}  // namespace lockstep
