#include <fcntl.h>
#include <libproc.h>
#include <mach/mach.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <random>

#include "runtime/base/os.h"

namespace lockstep::os {
namespace {

uint64_t SysctlNumber(const char* name) {
  uint64_t value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 ? value : 0;
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

std::vector<int> AllowedCpus() { return OnlineCpus(); }

Status SetAffinity(const std::vector<int>&) {
  return OkStatus();
}  // macOS schedules by quality of service

uint64_t StorageBytesRead() {
  rusage_info_current usage;
  if (proc_pid_rusage(getpid(), RUSAGE_INFO_CURRENT, reinterpret_cast<rusage_info_t*>(&usage)) != 0)
    return 0;
  return usage.ri_diskio_bytesread;
}

uint64_t MemoryBytesTotal() { return SysctlNumber("hw.memsize"); }
uint64_t MemoryBytesAvailable() { return SysctlNumber("hw.memsize"); }
uint64_t ControlGroupBytesLeft(const std::string&) { return UINT64_MAX; }

int MemoryNodes() { return 1; }

int64_t InterfaceMegabits(const std::string&) { return 0; }

// The length of a number's answer is 4 or 8, but a text may be as short: its bytes are letters.
std::string SystemText(const std::string&, const std::string& name) {
  if (name.starts_with("/")) return "";
  char answer[256] = {};
  size_t size = sizeof(answer) - 1;
  if (sysctlbyname(name.c_str(), answer, &size, nullptr, 0) != 0 || size == 0) return "";
  const std::string text(answer, strnlen(answer, size));
  if (text.size() + 1 == size) return text;
  uint64_t number = 0;
  std::memcpy(&number, answer, std::min(size, sizeof(number)));
  return std::to_string(number);
}

std::vector<std::string> SystemNames(const std::string&, const std::string&) { return {}; }
std::string SystemLink(const std::string&, const std::string&) { return ""; }
std::optional<bool> ClockIsSynchronized() { return std::nullopt; }

uint64_t ResidentBytes() {
  rusage_info_current usage;
  if (proc_pid_rusage(getpid(), RUSAGE_INFO_CURRENT, reinterpret_cast<rusage_info_t*>(&usage)) != 0)
    return 0;
  return usage.ri_resident_size;
}

uint64_t PeakResidentBytes() {
  rusage usage = {};
  return getrusage(RUSAGE_SELF, &usage) == 0 ? static_cast<uint64_t>(usage.ru_maxrss) : 0;
}

void DieWithParent() {}  // the control channel notices a parent that is gone

// Every Mac with an ARM processor; FEAT_DotProd has no name before macOS 12.
bool HasArmDotProducts() { return SysctlNumber("hw.optional.arm64") != 0; }
bool HasArmMatrixProducts() { return SysctlNumber("hw.optional.arm.FEAT_I8MM") != 0; }

void AdviseExactReads(int fd) { (void)fcntl(fd, F_RDAHEAD, 0); }

int OpenDirect(const char* path) {
  const int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd >= 0) (void)fcntl(fd, F_NOCACHE, 1);
  return fd;
}

void* AllocatePages(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

bool PopulatePages(void*, size_t) { return false; }

void FreePages(void* memory, size_t bytes) { (void)munmap(memory, bytes); }

StatusOr<int> CreateSharedMemory(size_t bytes) {
  std::random_device random;
  const std::string name = absl::StrFormat("/ls-%08x%08x", random(), random());
  const int descriptor = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
  if (descriptor >= 0) (void)shm_unlink(name.c_str());
  if (descriptor < 0 || ftruncate(descriptor, static_cast<off_t>(bytes)) != 0) {
    const int error = errno;
    if (descriptor >= 0) (void)close(descriptor);
    return InternalError("cannot create %d KiB of shared memory: %s", bytes >> 10,
                         std::strerror(error));
  }
  return descriptor;
}

// The size that macOS reports is rounded up to pages.
StatusOr<void*> MapSharedMemory(int descriptor, size_t bytes, bool writable) {
  struct stat facts {};
  if (fstat(descriptor, &facts) != 0 || facts.st_size < static_cast<off_t>(bytes)) {
    return InternalError("the shared memory is not of %d bytes", bytes);
  }
  const int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
  void* memory = mmap(nullptr, bytes, protection, MAP_SHARED, descriptor, 0);
  if (memory == MAP_FAILED) {
    return InternalError("cannot map %d KiB of shared memory: %s", bytes >> 10,
                         std::strerror(errno));
  }
  return memory;
}

void ForbidFurtherWriters(int) {}

}  // namespace lockstep::os
