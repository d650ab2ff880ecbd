#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>

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
uint64_t MemoryBytesTotal() { return ProcNumber("/proc/meminfo", "MemTotal:") * 1024; }
uint64_t MemoryBytesAvailable() { return ProcNumber("/proc/meminfo", "MemAvailable:") * 1024; }
uint64_t ResidentBytes() { return ProcNumber("/proc/self/status", "VmRSS:") * 1024; }

void DieWithParent() { prctl(PR_SET_PDEATHSIG, SIGKILL); }

void AdviseExactReads(int fd) { (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM); }

void* AllocatePages(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return nullptr;
  (void)madvise(memory, bytes, MADV_HUGEPAGE);
  return memory;
}

void FreePages(void* memory, size_t bytes) { (void)munmap(memory, bytes); }

}  // namespace lockstep::os
