// What the facts of GPUs mean.
#include <algorithm>

#include "absl/strings/str_format.h"
#include "launcher/commands/nvml.h"
#include "launcher/progress.h"

namespace lockstep {
namespace {

// The oldest GPUs that kernels are compiled for: runtime/kernels/cuda/cuda_device.cc refuses older
// ones.
constexpr int kOldestCapability = 9;
// Memory that others hold, above which it is worth a word.
constexpr double kUsedPart = 0.1;

std::string Watts(std::optional<uint64_t> milliwatts) {
  return milliwatts ? absl::StrFormat("%.0f", static_cast<double>(*milliwatts) / 1000) : "?";
}
std::string Count(std::optional<uint64_t> number) { return number ? std::to_string(*number) : "?"; }
const char* OnOff(std::optional<bool> on) { return !on ? "?" : *on ? "on" : "off"; }

std::string NameOf(size_t index, const GpuFacts& gpu) {
  return absl::StrFormat("GPU %d (%s)", index, gpu.name.empty() ? "?" : gpu.name);
}

void ExamineClocks(const std::string& name, const GpuFacts& gpu, GpuFindings* findings) {
  using R = ThrottleReason;
  std::vector<std::string>* faults = &findings->faults;
  const uint64_t reasons = gpu.throttle_reasons.value_or(0);
  const std::string clock =
      absl::StrFormat("%s MHz of %s", Count(gpu.megahertz), Count(gpu.most_megahertz));
  if ((reasons & (R::kHeat | R::kHardwareHeat)) != 0) {
    faults->push_back(absl::StrFormat(
        "%s slows itself down for heat (%s °C, %s): look after fans, dust and the air around it",
        name, Count(gpu.celsius), clock));
  }
  if ((reasons & R::kPowerBrake) != 0) {
    faults->push_back(
        absl::StrFormat("%s is slowed down by the power supply (%s): check its cables, and that "
                        "the supply gives what all GPUs take",
                        name, clock));
  } else if ((reasons & R::kHardware) != 0 && (reasons & R::kHardwareHeat) == 0) {
    faults->push_back(absl::StrFormat(
        "%s is slowed down by its own circuits (%s): power or heat; `nvidia-smi -q -d PERFORMANCE` "
        "says more",
        name, clock));
  }
  if ((reasons & R::kPowerLimit) != 0) {
    findings->notes.push_back(absl::StrFormat(  // as servers at work do
        "%s has reached its power limit of %s W (%s): sudo nvidia-smi -pl WATTS raises it, as far "
        "as the card allows",
        name, Watts(gpu.most_milliwatts), clock));
  }
  if ((reasons & R::kClocksSet) != 0) {
    faults->push_back(absl::StrFormat(
        "somebody set the clocks of %s lower (%s): sudo nvidia-smi -rgc, and -rac, undo it", name,
        clock));
  }
}

void ExamineMemory(const std::string& name, const GpuFacts& gpu, GpuFindings* findings) {
  if (gpu.uncorrected_errors.value_or(0) > 0) {
    findings->faults.push_back(absl::StrFormat(
        "%s has had %d errors of memory that ECC could not correct: restart the machine, and have "
        "the card replaced if they come again (nvidia-smi -q -d ECC,PAGE_RETIREMENT,ROW_REMAPPER)",
        name, *gpu.uncorrected_errors));
  }
  if (gpu.ecc == false) {
    findings->notes.push_back(absl::StrFormat(
        "ECC of %s is off, so that a flipped bit may change text silently: sudo nvidia-smi -e 1, "
        "then restart the machine",
        name));
  }
  if (!gpu.memory_bytes.has_value() || !gpu.free_bytes.has_value()) return;
  const uint64_t used = *gpu.memory_bytes - std::min(*gpu.free_bytes, *gpu.memory_bytes);
  if (static_cast<double>(used) > kUsedPart * static_cast<double>(*gpu.memory_bytes)) {
    findings->notes.push_back(
        absl::StrFormat("%s of the %s of %s are taken: nvidia-smi lists by whom", FormatBytes(used),
                        FormatBytes(*gpu.memory_bytes), name));
  }
}

void ExamineLink(const std::string& name, const GpuFacts& gpu, std::vector<std::string>* faults) {
  if (gpu.pcie_lanes.value_or(0) > 0 && *gpu.pcie_lanes < gpu.most_pcie_lanes.value_or(0)) {
    faults->push_back(absl::StrFormat(
        "%s has %d of %d PCIe lanes: seat it again, use a slot wired for all of them, and look for "
        "a setting in the BIOS that parts them",
        name, *gpu.pcie_lanes, *gpu.most_pcie_lanes));
  }
  // An idle link rests at the slowest speed, whatever it can do.
  const bool idle =
      !gpu.throttle_reasons.has_value() || (*gpu.throttle_reasons & ThrottleReason::kIdle) != 0;
  if (!idle && gpu.pcie_generation.value_or(0) > 0 &&
      *gpu.pcie_generation < gpu.most_pcie_generation.value_or(0)) {
    faults->push_back(absl::StrFormat(
        "the PCIe link of %s runs as generation %d, not %d, though it is at work: set its speed in "
        "the BIOS, and change the riser if there is one",
        name, *gpu.pcie_generation, *gpu.most_pcie_generation));
  }
}

}  // namespace

std::vector<std::string> DescribeGpus(const GpuReport& report) {
  std::vector<std::string> lines;
  for (size_t index = 0; index < report.gpus.size(); ++index) {
    const GpuFacts& gpu = report.gpus[index];
    const std::string memory =
        gpu.memory_bytes ? absl::StrFormat("%s (%s free)", FormatBytes(*gpu.memory_bytes),
                                           gpu.free_bytes ? FormatBytes(*gpu.free_bytes) : "?")
                         : std::string("the machine's memory");
    lines.push_back(absl::StrFormat(
        "%s: compute capability %d.%d, %s, %s of %s MHz, memory at %s, %s °C, %s of %s W, ECC %s, "
        "PCIe generation %s of %s, %s of %s lanes, %d NVLinks, persistence %s",
        NameOf(index, gpu), gpu.capability_major, gpu.capability_minor, memory,
        Count(gpu.megahertz), Count(gpu.most_megahertz), Count(gpu.memory_megahertz),
        Count(gpu.celsius), Watts(gpu.milliwatts), Watts(gpu.most_milliwatts), OnOff(gpu.ecc),
        Count(gpu.pcie_generation), Count(gpu.most_pcie_generation), Count(gpu.pcie_lanes),
        Count(gpu.most_pcie_lanes), gpu.nvlinks, OnOff(gpu.persistence)));
  }
  return lines;
}

GpuFindings ExamineGpus(const GpuReport& report, const std::string& nvidia_driver) {
  GpuFindings findings;
  if (!report.has_library && !nvidia_driver.empty()) {
    findings.notes.push_back(absl::StrFormat(
        "NVIDIA's driver %s is loaded, but its library libnvidia-ml.so.1 is not found, so that "
        "nothing is known of the GPUs: install the driver's own packages of that version "
        "(libnvidia-compute on Debian and Ubuntu; in a container --gpus all)",
        nvidia_driver));
  }
  if (!report.problem.empty()) findings.faults.push_back(report.problem);
  bool persistence = true;
  for (size_t index = 0; index < report.gpus.size(); ++index) {
    const GpuFacts& gpu = report.gpus[index];
    const std::string name = NameOf(index, gpu);
    ExamineClocks(name, gpu, &findings);
    ExamineMemory(name, gpu, &findings);
    ExamineLink(name, gpu, &findings.faults);
    persistence = persistence && gpu.persistence != false;
    if (gpu.capability_major > 0 && gpu.capability_major < kOldestCapability) {
      findings.notes.push_back(
          absl::StrFormat("%s has compute capability %d.%d, and lockstep's kernels are for %d.0 "
                          "and later: here the processor computes (--device cpu)",
                          name, gpu.capability_major, gpu.capability_minor, kOldestCapability));
    }
  }
  if (!persistence) {
    findings.notes.emplace_back(
        "persistence mode is off, so that the driver lets go of an unused GPU and every start "
        "waits "
        "for it: sudo systemctl enable --now nvidia-persistenced (or sudo nvidia-smi -pm 1)");
  }
  return findings;
}

}  // namespace lockstep
