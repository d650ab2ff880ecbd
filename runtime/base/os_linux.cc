#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/timex.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "runtime/base/os.h"

namespace lockstep::os {
namespace {

// The number after `key` in a "key: number" file of /proc, 0 if absent.
uint64_t ProcNumber(const char* path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  while (file >> word) {
    if (word == key) {
      uint64_t value = 0;
      file >> value;
      return value;
    }
  }
  return 0;
}

// A file of one number; `otherwise` if it is not there or says something else ("max").
uint64_t NumberIn(const std::string& path, uint64_t otherwise) {
  std::ifstream file(path);
  uint64_t value = 0;
  return file >> value ? value : otherwise;
}

// What one control group's limit leaves.
uint64_t GroupBytesLeft(const std::string& directory, bool old) {
  const uint64_t limit =
      NumberIn(directory + (old ? "/memory.limit_in_bytes" : "/memory.max"), UINT64_MAX);
  if (limit == UINT64_MAX) return UINT64_MAX;
  const uint64_t used =
      NumberIn(directory + (old ? "/memory.usage_in_bytes" : "/memory.current"), 0);
  const std::string stat = directory + "/memory.stat";
  const uint64_t cached = ProcNumber(stat.c_str(), old ? "total_inactive_file" : "inactive_file");
  const uint64_t kept = used > cached ? used - cached : 0;
  return limit > kept ? limit - kept : 0;
}

// Of `ulimit -v`.
uint64_t AddressBytesLeft() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return UINT64_MAX;
  const uint64_t used = ProcNumber("/proc/self/status", "VmSize:") * 1024;
  return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}

}  // namespace

std::string HostName() {
  char name[256] = {};
  return gethostname(name, sizeof(name) - 1) == 0 ? name : "unknown";
}

int ProcessId() { return getpid(); }

std::vector<int> OnlineCpus() {
  std::vector<int> cpus;
  const long count = sysconf(_SC_NPROCESSORS_ONLN);
  for (int cpu = 0; cpu < count; ++cpu) cpus.push_back(cpu);
  return cpus;
}

std::vector<int> AllowedCpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<int> cpus;
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return OnlineCpus();
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (CPU_ISSET(cpu, &set)) cpus.push_back(cpu);
  }
  return cpus;
}

Status SetAffinity(const std::vector<int>& cpus) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const int cpu : cpus) CPU_SET(cpu, &set);
  if (sched_setaffinity(0, sizeof(set), &set) != 0) {
    return InternalError("cannot run on CPUs %d..%d: %s", cpus.front(), cpus.back(),
                         std::strerror(errno));
  }
  return OkStatus();
}

uint64_t StorageBytesRead() { return ProcNumber("/proc/self/io", "read_bytes:"); }
int MemoryNodes() {
  int nodes = 0;
  while (access(("/sys/devices/system/node/node" + std::to_string(nodes)).c_str(), F_OK) == 0)
    ++nodes;
  return nodes > 0 ? nodes : 1;
}

uint64_t MemoryBytesTotal() { return ProcNumber("/proc/meminfo", "MemTotal:") * 1024; }
uint64_t MemoryBytesAvailable() {
  const uint64_t free = ProcNumber("/proc/meminfo", "MemAvailable:") * 1024;
  if (free == 0) return 0;
  return std::max<uint64_t>(1, std::min({free, ControlGroupBytesLeft(""), AddressBytesLeft()}));
}

uint64_t ControlGroupBytesLeft(const std::string& root) {
  uint64_t left = UINT64_MAX;
  std::ifstream groups(root + "/proc/self/cgroup");
  // "0::/user.slice/a.scope" (version 2), "4:memory:/docker/b" (version 1)
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':'), second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool old = controllers.find(",memory,") != std::string::npos;
    if (!old && controllers != ",,") continue;
    const std::string base = root + "/sys/fs/cgroup" + (old ? "/memory" : "");
    // Every group above limits as well. In a container the path may be another machine's view.
    std::string path = line.substr(second + 1);
    while (true) {
      left = std::min(left, GroupBytesLeft(base + path, old));
      if (path.empty() || path == "/") break;
      path.resize(path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/'));
    }
  }
  return left;
}
uint64_t ResidentBytes() { return ProcNumber("/proc/self/status", "VmRSS:") * 1024; }
uint64_t PeakResidentBytes() { return ProcNumber("/proc/self/status", "VmHWM:") * 1024; }

int64_t InterfaceMegabits(const std::string& interface) {
  std::ifstream file("/sys/class/net/" + interface + "/speed");
  int64_t megabits = 0;
  return file >> megabits && megabits > 0 ? megabits : 0;
}

std::string SystemText(const std::string& root, const std::string& name) {
  if (!name.starts_with("/")) return "";
  std::ifstream file(root + name, std::ios::binary);
  std::string text(size_t{64} << 10, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
  const size_t last = text.find_last_not_of(std::string(" \t\r\n\0", 5));
  return last == std::string::npos ? "" : text.substr(0, last + 1);
}

std::vector<std::string> SystemNames(const std::string& root, const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(root + folder, error), end; !error && entry != end;
       entry.increment(error))
    names.push_back(entry->path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string SystemLink(const std::string& root, const std::string& name) {
  std::error_code error;
  return std::filesystem::read_symlink(root + name, error).filename().string();
}

std::optional<bool> ClockIsSynchronized() {
  timex question = {};
  const int state = adjtimex(&question);
  if (state < 0) return std::nullopt;
  return state != TIME_ERROR && (question.status & STA_UNSYNC) == 0;
}

void DieWithParent() { prctl(PR_SET_PDEATHSIG, SIGKILL); }

#if defined(__aarch64__)
bool HasArmDotProducts() { return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0; }
bool HasArmMatrixProducts() { return (getauxval(AT_HWCAP2) & HWCAP2_I8MM) != 0; }
#else
bool HasArmDotProducts() { return false; }
bool HasArmMatrixProducts() { return false; }
#endif

void AdviseExactReads(int fd) { (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); }

int OpenDirect(const char* path) {
  return open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
}

void* AllocatePages(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  (void)madvise(memory, bytes, MADV_HUGEPAGE);
  return memory;
}

bool PopulatePages(void* memory, size_t bytes) {
  return madvise(memory, bytes, MADV_POPULATE_WRITE) == 0;
}

void FreePages(void* memory, size_t bytes) { (void)munmap(memory, bytes); }

StatusOr<int> CreateSharedMemory(size_t bytes) {
  const int descriptor = memfd_create("lockstep", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (descriptor < 0 || ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) {
    const int error = errno;
    if (descriptor >= 0) (void)close(descriptor);
    return InternalError("cannot create %d KiB of shared memory: %s", bytes >> 10,
                         std::strerror(error));
  }
  // Nobody can shrink it under another's feet.
  (void)fcntl(descriptor, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW);
  return descriptor;
}

StatusOr<void*> MapSharedMemory(int descriptor, size_t bytes, bool writable) {
  struct stat facts {};
  if (fstat(descriptor, &facts) != 0 || facts.st_size != static_cast<off_t>(bytes)) {
    return InternalError("the shared memory is not of %d bytes", bytes);
  }
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* memory = mmap(nullptr, bytes, protection, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) {
    return InternalError("cannot map %d KiB of shared memory: %s", bytes >> 10,
                         std::strerror(errno));
  }
  (void)madvise(memory, bytes, MADV_HUGEPAGE);
  return memory;
}

void ForbidFurtherWriters(int descriptor) {
#ifdef F_SEAL_FUTURE_WRITE  // Linux 5.1
  (void)fcntl(descriptor, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
#endif
}

}  // namespace lockstep::os
