// What tests may change about the emulated devices.
#pragma once

#include <cuda_runtime.h>

#include <map>
#include <string>

namespace emulation {

struct Machine {
  int devices = 2;
  int major = 9, minor = 0;  // compute capability
  bool reads_host_memory = true;
  bool integrated = false;
  bool hangs = false;                       // streams never come to an end
  size_t memory_bytes = size_t{8} << 30;    // of a device
  std::map<std::string, cudaError_t> fail;  // by the name of the call that says so, until taken out
};
Machine& TheMachine();

// Of cudaMalloc and cudaMallocManaged, now.
size_t TakenBytes();
// Launches so far.
int Launches();

}  // namespace emulation
