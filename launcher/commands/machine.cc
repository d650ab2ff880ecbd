#include "launcher/commands/machine.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <numeric>

#include "absl/strings/str_split.h"
#include "launcher/progress.h"
#include "runtime/base/gguf.h"
#include "runtime/base/os.h"
#include "runtime/weights/shard_file.h"

namespace lockstep {
namespace {

// With RDMA every link pins memory (transport/rdma): 4.5 MiB and a copy of the peer's window.
constexpr uint64_t kLockableBytes = uint64_t{1} << 30;
// What the firmware of a Strix Halo needs to keep for its GPU.
constexpr uint64_t kCarvedBytes = uint64_t{2} << 30;
// Of AMD's: Radeon 8050S and 8060S.
constexpr const char* kStrixHaloDevice = "0x1586";
constexpr uint64_t kPageBytes = 4096;

// Nothing but decimal digits, and no more than fits.
std::optional<uint64_t> Number(std::string_view text) {
  uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return number;
}
std::optional<uint64_t> FirstNumber(const std::string& text) {
  return Number(std::string_view(text).substr(0, text.find(' ')));
}

// Of a line of /proc/meminfo; 0: not known.
uint64_t KiBytes(const std::string& text) {
  const uint64_t number = text.ends_with(" kB") ? FirstNumber(text).value_or(0) : 0;
  return number > UINT64_MAX / 1024 ? 0 : number * 1024;
}

// The value behind "key:" of a file like /proc/meminfo, up to the end of the line.
std::string ValueOf(const std::string& text, const std::string& key) {
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(text, '\n'))) {
    if (!line.starts_with(key)) continue;
    const size_t begin = line.find_first_not_of(" \t:", key.size());
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

// The chosen one of "always [madvise] never".
std::string Chosen(const std::string& text) {
  const size_t begin = text.find('['), end = text.find(']');
  return begin == std::string::npos || end < begin ? "" : text.substr(begin + 1, end - begin - 1);
}

// Megabits a second of a PCIe link: "16.0 GT/s PCIe" and a number of lanes.
double PcieMegabits(const std::string& speed, const std::string& lanes) {
  const double giga = std::strtod(speed.c_str(), nullptr);
  const double coded = giga >= 8 ? 128.0 / 130 : 0.8;
  return giga * 1000 * coded * static_cast<double>(Number(lanes).value_or(0));
}

std::vector<NetworkCard> NetworkCards(const std::string& root) {
  std::vector<NetworkCard> cards;
  for (const std::string& name : os::SystemNames(root, "/sys/class/net")) {
    const std::string folder = "/sys/class/net/" + name;
    const std::string driver = os::SystemLink(root, folder + "/device/driver");
    const auto megabits =
        std::strtoll(os::SystemText(root, folder + "/speed").c_str(), nullptr, 10);
    if (driver.empty() || megabits <= 0 || os::SystemText(root, folder + "/operstate") != "up")
      continue;
    cards.push_back({name, driver, megabits,
                     PcieMegabits(os::SystemText(root, folder + "/device/current_link_speed"),
                                  os::SystemText(root, folder + "/device/current_link_width"))});
  }
  return cards;
}

std::vector<RdmaCard> RdmaCards(const std::string& root) {
  std::vector<RdmaCard> cards;
  for (const std::string& name : os::SystemNames(root, "/sys/class/infiniband")) {
    const std::string folder = "/sys/class/infiniband/" + name;
    const std::string state = os::SystemText(root, folder + "/ports/1/state");  // "4: ACTIVE"
    cards.push_back({name, os::SystemText(root, folder + "/board_id"),
                     os::SystemText(root, folder + "/fw_ver"), state.ends_with("ACTIVE")});
  }
  return cards;
}

void ReadGpus(const std::string& root, MachineFacts* facts) {
  facts->nvidia_driver = os::SystemText(root, "/sys/module/nvidia/version");
  for (const std::string& name : os::SystemNames(root, "/sys/class/drm")) {
    const std::string device = "/sys/class/drm/" + name + "/device/";
    if (os::SystemText(root, device + "vendor") != "0x1002" ||
        os::SystemText(root, device + "device") != kStrixHaloDevice)
      continue;
    facts->strix_halo = true;
    facts->carved_bytes = Number(os::SystemText(root, device + "mem_info_vram_total"));
    facts->gtt_bytes = Number(os::SystemText(root, device + "mem_info_gtt_total"));
  }
  if (!facts->strix_halo) return;
  // TTM, which hands out the pages, has a limit of its own.
  const auto pages = Number(os::SystemText(root, "/sys/module/ttm/parameters/pages_limit"));
  if (pages.value_or(0) > 0 && *pages < UINT64_MAX / kPageBytes)
    facts->gtt_bytes = std::min(facts->gtt_bytes.value_or(UINT64_MAX), *pages * kPageBytes);
}

std::optional<uint64_t> Lockable(const std::string& root) {
  const std::string line = ValueOf(os::SystemText(root, "/proc/self/limits"), "Max locked memory");
  return line.starts_with("unlimited") ? UINT64_MAX : FirstNumber(line);
}

std::string Size(std::optional<uint64_t> bytes) { return bytes ? FormatBytes(*bytes) : "?"; }
std::string KnownSize(uint64_t bytes) { return bytes == 0 ? "?" : FormatBytes(bytes); }
std::string Locked(std::optional<uint64_t> bytes) {
  return bytes == UINT64_MAX ? "unlimited" : Size(bytes);
}

}  // namespace

MachineFacts ReadMachine(const std::string& root) {
  MachineFacts facts;
  const std::string dmi = "/sys/class/dmi/id/";
  facts.product = os::SystemText(root, dmi + "product_name");
  if (facts.product.empty()) facts.product = os::SystemText(root, "/proc/device-tree/model");
  if (facts.product.empty()) facts.product = os::SystemText(root, "hw.model");
  const std::string release = os::SystemText(root, "/proc/sys/kernel/osrelease");
  const std::string macos = os::SystemText(root, "kern.osproductversion");
  if (!release.empty()) facts.system = "Linux " + release;
  if (!macos.empty()) facts.system = "macOS " + macos;
  const std::string memory = os::SystemText(root, "/proc/meminfo");
  facts.memory_bytes = KiBytes(ValueOf(memory, "MemTotal"));
  facts.available_bytes = KiBytes(ValueOf(memory, "MemAvailable"));
  if (facts.memory_bytes == 0) facts.memory_bytes = os::MemoryBytesTotal();
  if (root.empty()) {  // what control groups and limits leave counts, too
    facts.available_bytes = os::MemoryBytesAvailable();
    facts.clock_synchronized = os::ClockIsSynchronized();
  }
  facts.lockable_bytes = Lockable(root);
  facts.huge_pages = Chosen(os::SystemText(root, "/sys/kernel/mm/transparent_hugepage/enabled"));
  const std::string cpufreq = "/sys/devices/system/cpu/cpu0/cpufreq/";
  facts.governor = os::SystemText(root, cpufreq + "scaling_governor");
  facts.governor_driver = os::SystemText(root, cpufreq + "scaling_driver");
  facts.clock_source =
      os::SystemText(root, "/sys/devices/system/clocksource/clocksource0/current_clocksource");
  facts.network = NetworkCards(root);
  facts.rdma = RdmaCards(root);
  ReadGpus(root, &facts);
  facts.wired_limit_mib = Number(os::SystemText(root, "iogpu.wired_limit_mb"));
  return facts;
}

void LookAtModel(const std::string& model, MachineFacts* facts) {
  facts->model = model;
  facts->model_bytes = 0;
  facts->rank_files.clear();
  if (model.empty()) return;
  std::error_code error;
  std::filesystem::path place(model);
  if (std::filesystem::is_regular_file(place, error)) {
    for (const std::string& part : GgufPartPaths(model)) {
      const uint64_t bytes = std::filesystem::file_size(part, error);
      if (!error) facts->model_bytes += bytes;
    }
  } else {
    for (std::filesystem::directory_iterator entry(place, error), end; !error && entry != end;
         entry.increment(error)) {
      std::error_code ignored;
      const uint64_t bytes = entry->is_regular_file(ignored) ? entry->file_size(ignored) : 0;
      if (ignored) continue;
      facts->model_bytes += bytes;
      RankFile file{.bytes = bytes};
      if (IsShardName(entry->path().filename().string(), &file.rank, &file.ranks))
        facts->rank_files.push_back(file);
    }
  }
  // The disk where it is, or would be.
  while (!place.empty() && !std::filesystem::exists(place, error)) {
    const std::filesystem::path above = place.parent_path();
    if (above == place) break;
    place = above;
  }
  const auto space = std::filesystem::space(place.empty() ? "." : place, error);
  if (!error) facts->disk_free_bytes = space.available;
}

uint64_t WholeModelBytes(const MachineFacts& facts, std::span<const double> shares) {
  if (facts.rank_files.empty()) return facts.model_bytes;
  const auto own = static_cast<int>(shares.size());
  const auto of = [&](const RankFile& file) { return file.ranks == own; };
  // Those of this run; else of another that is here, whose shares its name does not tell.
  const bool fits = std::any_of(facts.rank_files.begin(), facts.rank_files.end(), of);
  const int ranks = fits ? own : facts.rank_files.front().ranks;
  double here = 0, bytes = 0;
  for (const RankFile& file : facts.rank_files) {
    if (file.ranks != ranks) continue;
    here += fits ? shares[static_cast<size_t>(file.rank)] : 1;
    bytes += static_cast<double>(file.bytes);
  }
  const double all = fits ? std::accumulate(shares.begin(), shares.end(), 0.0) : ranks;
  return here > 0 ? static_cast<uint64_t>(bytes * all / here) : facts.model_bytes;
}

std::vector<std::string> Describe(const MachineFacts& facts) {
  std::vector<std::string> lines;
  const auto words = [](const std::string& text) { return text.empty() ? "?" : text; };
  lines.push_back(absl::StrFormat("%s, %s, %s of memory (%s free), %s may be locked",
                                  words(facts.product), words(facts.system),
                                  KnownSize(facts.memory_bytes), KnownSize(facts.available_bytes),
                                  Locked(facts.lockable_bytes)));
  lines.push_back(absl::StrFormat("huge pages %s, governor %s, clock %s%s", words(facts.huge_pages),
                                  words(facts.governor), words(facts.clock_source),
                                  !facts.clock_synchronized.has_value() ? ""
                                  : *facts.clock_synchronized           ? ", synchronized"
                                                                        : ", not synchronized"));
  for (const NetworkCard& card : facts.network) {
    lines.push_back(absl::StrFormat(
        "%s: %s, %.3g Gb/s%s", card.interface, card.driver,
        static_cast<double>(card.megabits) / 1000,
        card.slot_megabits == 0
            ? ""
            : absl::StrFormat(", PCIe carries %.3g Gb/s", card.slot_megabits / 1000)));
  }
  for (const RdmaCard& card : facts.rdma) {
    lines.push_back(absl::StrFormat("%s: RDMA, %s, firmware %s, %s", card.device, words(card.board),
                                    words(card.firmware), card.active ? "active" : "not active"));
  }
  if (!facts.nvidia_driver.empty())
    lines.push_back("driver of NVIDIA's GPUs: " + facts.nvidia_driver);
  if (facts.strix_halo) {
    lines.push_back(absl::StrFormat("GPU: %s kept by the firmware, %s by GTT",
                                    Size(facts.carved_bytes), Size(facts.gtt_bytes)));
  }
  if (!facts.model.empty()) {
    lines.push_back(
        absl::StrFormat("%s: %s, %s free on that disk", facts.model,
                        facts.model_bytes == 0 ? "not here" : FormatBytes(facts.model_bytes),
                        FormatBytes(facts.disk_free_bytes)));
  }
  return lines;
}

namespace {

void ExamineMemory(const MachineFacts& facts, uint64_t model_bytes, double share,
                   std::vector<std::string>* faults) {
  const auto part = static_cast<uint64_t>(static_cast<double>(model_bytes) * share);
  if (!facts.model.empty() && facts.model_bytes == 0) {
    faults->push_back(absl::StrFormat(
        "%s is not on this machine: copy it there, or write this rank's part of it with `lockstep "
        "shard --from` (docs/files.md)%s",
        facts.model,
        part > facts.disk_free_bytes
            ? absl::StrFormat("; but its part alone is about %s and %s are free on that disk",
                              FormatBytes(part), FormatBytes(facts.disk_free_bytes))
            : ""));
  }
  if (facts.available_bytes != 0 && part > facts.available_bytes) {
    faults->push_back(absl::StrFormat(
        "about %s of the model are for this machine and %s of memory are free: end other programs, "
        "use more ranks, a smaller share here (--shares) or fewer bits (lockstep shard --quantize)",
        FormatBytes(part), FormatBytes(facts.available_bytes)));
  }
  if (facts.huge_pages == "never") {
    faults->emplace_back(
        "huge pages are off, so that weights are read through many small ones: echo madvise | sudo "
        "tee /sys/kernel/mm/transparent_hugepage/enabled");
  }
  if (!facts.rdma.empty() && facts.lockable_bytes.value_or(UINT64_MAX) < kLockableBytes) {
    faults->push_back(absl::StrFormat(
        "only %s may be locked in memory, and RDMA locks what it sends: ulimit -l unlimited (for "
        "good: `* - memlock unlimited` in /etc/security/limits.d/lockstep.conf, LimitMEMLOCK="
        "infinity in systemd units, --ulimit memlock=-1 for docker)",
        Size(facts.lockable_bytes)));
  }
  if (facts.strix_halo && facts.carved_bytes.value_or(0) > kCarvedBytes) {
    faults->push_back(absl::StrFormat(
        "the firmware keeps %s of the memory for the GPU, where CPU kernels cannot reach it: set "
        "the UMA frame buffer (iGPU memory) to its least in the BIOS, and let GTT lend memory",
        Size(facts.carved_bytes)));
  }
}

void ExamineClocks(const MachineFacts& facts, std::vector<std::string>* faults) {
  // Drivers of the kind "pstate" mean by powersave that they choose as needed.
  if (facts.governor == "powersave" && facts.governor_driver.find("pstate") == std::string::npos) {
    faults->emplace_back(
        "the governor powersave keeps the processor at its lowest frequency: sudo cpupower "
        "frequency-set -g performance");
  }
  for (const char* slow : {"hpet", "acpi_pm", "jiffies", "refined-jiffies"}) {
    if (facts.clock_source != slow) continue;
    faults->push_back(absl::StrFormat(
        "the clock is %s, and each look at it a system call: `dmesg | grep -i tsc` says why the "
        "kernel left the processor's own (a newer BIOS, or tsc=reliable on its command line)",
        slow));
  }
  if (facts.clock_synchronized.has_value() && !*facts.clock_synchronized) {
    faults->emplace_back(
        "the clock is not synchronized: logs of several machines cannot be compared, and "
        "certificates may seem expired; sudo timedatectl set-ntp true");
  }
}

void ExamineCards(const MachineFacts& facts, std::vector<std::string>* faults) {
  for (const NetworkCard& card : facts.network) {
    const auto nominal = static_cast<double>(card.megabits);
    if (card.slot_megabits == 0 || card.slot_megabits >= nominal) continue;
    faults->push_back(absl::StrFormat(
        "%s: a card of %.3g Gb/s in a slot that carries %.3g: use a slot with more lanes (lspci "
        "-vv, LnkSta); on a DGX Spark each port has two such halves, and one interface is one half",
        card.interface, nominal / 1000, card.slot_megabits / 1000));
  }
  for (const RdmaCard& card : facts.rdma) {
    if (card.active) continue;
    faults->push_back(
        absl::StrFormat("the port of %s is not active: is its cable plugged in, its interface up "
                        "(ip link set dev ... up; rdma link names it) and does it have an address?",
                        card.device));
  }
}

}  // namespace

MachineFindings ExamineMachine(const MachineFacts& facts, uint64_t model_bytes, double share) {
  MachineFindings findings;
  ExamineMemory(facts, model_bytes, share, &findings.faults);
  ExamineClocks(facts, &findings.faults);
  ExamineCards(facts, &findings.faults);
  if (facts.strix_halo && facts.gtt_bytes.value_or(UINT64_MAX) < facts.memory_bytes / 10 * 9) {
    const uint64_t wanted = facts.memory_bytes - std::min(facts.memory_bytes, uint64_t{8} << 30);
    findings.notes.push_back(
        absl::StrFormat("the GPU may have %s of the memory; kernels for it, which lockstep does "
                        "not have yet, would "
                        "want ttm.pages_limit=%d on the kernel's command line (%s; the same as "
                        "ttm.page_pool_size)",
                        Size(facts.gtt_bytes), wanted / kPageBytes, FormatBytes(wanted)));
  }
  const uint64_t wired_mib = (facts.memory_bytes >> 20) / 10 * 9;
  if (facts.wired_limit_mib.has_value() && *facts.wired_limit_mib < wired_mib) {
    const std::string now = *facts.wired_limit_mib == 0
                                ? "about three quarters of the memory"
                                : absl::StrFormat("%d MiB", *facts.wired_limit_mib);
    findings.notes.push_back(absl::StrFormat(
        "macOS lets the GPU hold %s; kernels for it, which lockstep does not have yet, would want "
        "sudo sysctl iogpu.wired_limit_mb=%d (until the next start)",
        now, wired_mib));
  }
  return findings;
}

std::map<std::string, std::string> Versions(const MachineFacts& facts) {
  std::map<std::string, std::string> versions;
  std::map<std::string, std::vector<const RdmaCard*>> boards;
  for (const RdmaCard& card : facts.rdma) {
    if (!card.firmware.empty()) boards[card.board].push_back(&card);
  }
  // Devices have other names elsewhere, so that they are named only where they differ.
  for (const auto& [board, cards] : boards) {
    std::string each;
    bool alike = true;
    for (const RdmaCard* card : cards) {
      each += (each.empty() ? "" : " and ") + card->device + " " + card->firmware;
      alike = alike && card->firmware == cards.front()->firmware;
    }
    versions["the firmware of RDMA cards " + board] = alike ? cards.front()->firmware : each;
  }
  if (!facts.nvidia_driver.empty()) versions["the driver of NVIDIA's GPUs"] = facts.nvidia_driver;
  if (!facts.system.empty()) versions["the kernel or system"] = facts.system;
  return versions;
}

}  // namespace lockstep
