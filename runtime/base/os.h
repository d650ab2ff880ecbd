// Every operating-system call that differs between platforms; os_linux.cc and os_darwin.cc
// implement it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep::os {

std::string HostName();
int ProcessId();
// Logical CPUs of this node that are online, whatever this process may use.
std::vector<int> OnlineCpus();
// CPUs in this process's affinity mask.
std::vector<int> AllowedCpus();
// Restricts the calling thread (and threads it starts later) to `cpus`.
Status SetAffinity(const std::vector<int>& cpus);
// Bytes this process caused to be read from storage (Linux: read_bytes of /proc/self/io). 0 if
// unknown.
uint64_t StorageBytesRead();
uint64_t MemoryBytesTotal();
uint64_t MemoryBytesAvailable();
uint64_t ResidentBytes();
// Asks the kernel to kill this process when its parent dies, so that no rank outlives its launcher.
void DieWithParent();
// Hints that [offset, offset + bytes) of an open file will be read at exactly these places (no
// read-ahead).
void AdviseExactReads(int fd);
// Anonymous zeroed memory, on huge pages where the system has them; nullptr if there is none.
void* AllocatePages(size_t bytes);
void FreePages(void* memory, size_t bytes);

}  // namespace lockstep::os
