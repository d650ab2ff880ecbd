#include "tests/runtime/kernels/cuda_emulation/emulation.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "tests/runtime/kernels/cuda_emulation/fibers.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace lockstep::kernels::cuda {

// What kernels call `extern __shared__ float4 shared_memory[]`, and a guard behind it.
constexpr size_t kSharedBytes = 48 * 1024;  // what a block gets without asking for more
constexpr size_t kGuardBytes = 256;
extern float4 shared_memory[];
float4 shared_memory[(kSharedBytes + kGuardBytes) / sizeof(float4)];

}  // namespace lockstep::kernels::cuda

namespace emulation {
namespace {

using lockstep::kernels::cuda::kGuardBytes;
using lockstep::kernels::cuda::kSharedBytes;
using lockstep::kernels::cuda::shared_memory;

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;

std::mutex launching;  // ranks are threads in tests
int launches = 0;
std::mutex taking;
std::map<void*, size_t> taken;
thread_local int current_device = 0;

uint32_t given[2][kMostThreads];  // by turns, so that nobody overwrites what others still read
int exchanges_of[kMostThreads];   // of each thread

cudaError_t Failing(const char* call) {
  const auto found = TheMachine().fail.find(call);
  return found == TheMachine().fail.end() ? cudaSuccess : found->second;
}

[[noreturn]] void Die(const char* what) {
  std::fprintf(stderr, "emulated kernel: %s\n", what);
  std::abort();
}

void RunBlock(const cudaLaunchConfig_t& config, bool descending,
              const std::function<void()>& thread) {
  const int threads = static_cast<int>(config.blockDim.x);
  auto* shared = reinterpret_cast<unsigned char*>(shared_memory);
  std::fill_n(shared, config.dynamicSmemBytes + kGuardBytes, static_cast<unsigned char>(0xff));
  std::fill_n(exchanges_of, threads, 0);
  RunThreads(threads, descending, [&] {
    threadIdx.x = static_cast<unsigned>(CurrentThread());
    thread();
  });
  for (size_t i = config.dynamicSmemBytes; i < config.dynamicSmemBytes + kGuardBytes; ++i)
    if (shared[i] != 0xff) Die("written behind the shared memory that was asked for");
}

// Managed memory is given beyond what there is.
cudaError_t Take(void** memory, size_t bytes, bool managed) {
  const std::scoped_lock lock(taking);
  size_t all = bytes;
  for (const auto& [at, size] : taken) all += size;
  if (!managed && all > TheMachine().memory_bytes) return cudaErrorMemoryAllocation;
  *memory = std::aligned_alloc(256, (bytes + 255) / 256 * 256 + 256);
  if (*memory == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*memory, 0xff, bytes);
  taken[*memory] = bytes;
  return cudaSuccess;
}

}  // namespace

Machine& TheMachine() {
  static Machine machine;
  return machine;
}

size_t TakenBytes() {
  const std::scoped_lock lock(taking);
  size_t bytes = 0;
  for (const auto& [at, size] : taken) bytes += size;
  return bytes;
}

int Launches() { return launches; }

cudaError_t Run(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  const std::scoped_lock lock(launching);
  if (const cudaError_t error = Failing("cudaLaunchKernelEx"); error != cudaSuccess) return error;
  const dim3 grid = config.gridDim;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535 || config.blockDim.x == 0 || config.blockDim.x > kMostThreads ||
      config.dynamicSmemBytes > kSharedBytes) {
    return cudaErrorInvalidValue;
  }
  if (config.stream->device != current_device) return cudaErrorInvalidValue;
  ++launches;
  const bool descending = config.stream->device == 1;
  gridDim = grid;
  blockDim = config.blockDim;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    const uint64_t block = descending ? blocks - 1 - i : i;
    blockIdx.x = static_cast<unsigned>(block % grid.x);
    blockIdx.y = static_cast<unsigned>(block / grid.x % grid.y);
    blockIdx.z = static_cast<unsigned>(block / grid.x / grid.y);
    RunBlock(config, descending, thread);
  }
  return cudaSuccess;
}

int OwnLane() { return CurrentThread() % kWarp; }

uint32_t Exchange(uint32_t mask, uint32_t value, int lane) {
  const int self = CurrentThread();
  if (mask != 0xffffffffu || blockDim.x % kWarp != 0) Die("an exchange between part of a warp");
  uint32_t* const turn = given[exchanges_of[self]++ % 2];
  turn[self] = value;
  WaitForWarp();
  threadIdx.x = static_cast<unsigned>(self);
  return turn[self / kWarp * kWarp + lane];
}

}  // namespace emulation

void __syncthreads() {
  const auto self = static_cast<unsigned>(emulation::CurrentThread());
  emulation::WaitForBlock();
  threadIdx.x = self;
}

void __syncwarp() {
  const auto self = static_cast<unsigned>(emulation::CurrentThread());
  emulation::WaitForWarp();
  threadIdx.x = self;
}

int __any_sync(uint32_t mask, int value) {
  int any = value != 0 ? 1 : 0;
  for (int apart = 16; apart > 0; apart /= 2) any |= __shfl_xor_sync(mask, any, apart);
  return any;
}

const char* cudaGetErrorName(cudaError_t error) {
  return error == cudaErrorMemoryAllocation   ? "cudaErrorMemoryAllocation"
         : error == cudaErrorIllegalAddress   ? "cudaErrorIllegalAddress"
         : error == cudaErrorECCUncorrectable ? "cudaErrorECCUncorrectable"
                                              : "cudaError";
}
const char* cudaGetErrorString(cudaError_t) { return "an emulated error"; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = emulation::TheMachine().devices;
  return emulation::Failing("cudaGetDeviceCount");
}

cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= emulation::TheMachine().devices) return cudaErrorInvalidDevice;
  emulation::current_device = device;
  return emulation::Failing("cudaSetDevice");
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const emulation::Machine& machine = emulation::TheMachine();
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 2;
      break;
    case cudaDevAttrIntegrated:
      *value = machine.integrated ? 1 : 0;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = machine.major;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = machine.minor;
      break;
    case cudaDevAttrPageableMemoryAccess:
      *value = machine.reads_host_memory ? 1 : 0;
      break;
  }
  return emulation::Failing("cudaDeviceGetAttribute");
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new EmulatedStream{emulation::current_device};
  return emulation::Failing("cudaStreamCreateWithFlags");
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t) {
  if (emulation::TheMachine().hangs) return cudaErrorNotReady;
  return emulation::Failing("cudaStreamQuery");
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *total = emulation::TheMachine().memory_bytes;
  *free = *total - std::min<size_t>(*total, emulation::TakenBytes());
  return emulation::Failing("cudaMemGetInfo");
}
cudaError_t cudaMalloc(void** memory, size_t bytes) {
  const cudaError_t error = emulation::Failing("cudaMalloc");
  return error != cudaSuccess ? error : emulation::Take(memory, bytes, false);
}
cudaError_t cudaMallocManaged(void** memory, size_t bytes, unsigned) {
  const cudaError_t error = emulation::Failing("cudaMallocManaged");
  return error != cudaSuccess ? error : emulation::Take(memory, bytes, true);
}
cudaError_t cudaMemAdvise(const void*, size_t, cudaMemoryAdvise, cudaMemLocation) {
  return emulation::Failing("cudaMemAdvise");
}
cudaError_t cudaFree(void* memory) {
  const std::scoped_lock lock(emulation::taking);
  if (memory != nullptr && emulation::taken.erase(memory) == 0) return cudaErrorInvalidValue;
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  std::memcpy(to, from, bytes);
  return emulation::Failing("cudaMemcpyAsync");
}
cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return emulation::Failing("cudaMemsetAsync");
}
