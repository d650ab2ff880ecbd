// Every operating-system call that differs between platforms; os_linux.cc and os_darwin.cc
// implement it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
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
// Parts of this node's memory that are nearer to some CPUs than to others (NUMA nodes); at least 1.
int MemoryNodes();
uint64_t MemoryBytesTotal();
// What this process may still take: of the machine, of its control groups' limits (containers,
// systemd's MemoryMax) and of its address space (ulimit -v). 0: not known.
uint64_t MemoryBytesAvailable();
// Linux: what the limits of the control groups leave to this process, of both versions, read below
// `root` ("": of this machine): /proc/self/cgroup says which groups, /sys/fs/cgroup what they have.
// Cached files count as free. UINT64_MAX: no limit.
uint64_t ControlGroupBytesLeft(const std::string& root);
uint64_t ResidentBytes();
// The most that ResidentBytes has been.
uint64_t PeakResidentBytes();
// Asks the kernel to kill this process when its parent dies, so that no rank outlives its launcher.
void DieWithParent();
// What a network interface's driver says that it transfers in a second; 0: not known.
int64_t InterfaceMegabits(const std::string& interface);
// What the system says under a name, without white space at its end: a file of Linux's /proc or
// /sys, read below `root` ("": of this machine), or a sysctl of macOS. Empty: nothing.
std::string SystemText(const std::string& root, const std::string& name);
// The names in such a folder of Linux, sorted, and where such a link leads: the last part of it.
std::vector<std::string> SystemNames(const std::string& root, const std::string& folder);
std::string SystemLink(const std::string& root, const std::string& name);
// Whether this machine's clock is kept in step with others (NTP); nothing if that is not known.
std::optional<bool> ClockIsSynchronized();
// Hints that [offset, offset + bytes) of an open file will be read at exactly these places (no
// read-ahead).
void AdviseExactReads(int fd);
// What this processor has beyond 64-bit ARM's first version: dot products of bytes (FEAT_DotProd)
// and products of matrices of bytes (FEAT_I8MM). false on other architectures.
bool HasArmDotProducts();
bool HasArmMatrixProducts();
// Opens a file for reads that pass by the page cache; their places, sizes and memory are multiples
// of kDirectBytes (base/file.h). -1, with errno, where the file system has none.
int OpenDirect(const char* path);
// Anonymous zeroed memory, on huge pages where the system has them; nullptr if there is none.
void* AllocatePages(size_t bytes);
// Has the system put memory behind these pages now, as writing to each would, and leaves what they
// hold; false where it cannot. Other threads may use them meanwhile.
bool PopulatePages(void* memory, size_t bytes);
// Also ends a MapSharedMemory.
void FreePages(void* memory, size_t bytes);
// Zeroed memory without a name, as a descriptor that other processes can be given: it is gone when
// the last of them is, and cannot be resized. The caller closes the descriptor.
StatusOr<int> CreateSharedMemory(size_t bytes);
// Maps it, on huge pages where the system has them for shared memory. An error when it is not
// `bytes` long.
StatusOr<void*> MapSharedMemory(int descriptor, size_t bytes, bool writable);
// From now on it can only be mapped to be read (macOS: not enforced).
void ForbidFurtherWriters(int descriptor);

}  // namespace lockstep::os
