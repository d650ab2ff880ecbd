#include "runtime/kernels/cuda/cuda_device.h"

#include <utility>

#include "runtime/base/clock.h"
#include "runtime/base/os.h"

namespace lockstep::kernels::cuda {
namespace {

// The least that kernels are compiled for (cmake/cuda.cmake).
constexpr int kLeastMajor = 9;

Status NoDriver(int ordinal, cudaError_t error) {
  // Servers whose GPUs are joined by switches have a service that joins them.
  const char* remedy = error == cudaErrorSystemNotReady ? "start nvidia-fabricmanager"
                                                        : "install NVIDIA's driver 580 or later";
  return UsageError(
      "--device cuda:%d on %s: CUDA does not start (%s: %s); %s and see that `nvidia-smi` lists "
      "the "
      "GPU, or leave --device out to compute on the processor",
      ordinal, os::HostName(), cudaGetErrorName(error), cudaGetErrorString(error), remedy);
}

int Attribute(cudaDeviceAttr attribute, int ordinal) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, attribute, ordinal) == cudaSuccess ? value : 0;
}

}  // namespace

DeviceBytes::~DeviceBytes() {
  if (data_ != nullptr && cudaSetDevice(device_) == cudaSuccess) cudaFree(data_);
}
DeviceBytes::DeviceBytes(DeviceBytes&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), device_(other.device_) {}
DeviceBytes& DeviceBytes::operator=(DeviceBytes&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(device_, other.device_);
  return *this;
}

StatusOr<std::unique_ptr<Device>> Device::Open(int ordinal) {
  int count = 0;
  if (const cudaError_t error = cudaGetDeviceCount(&count); error != cudaSuccess)
    return NoDriver(ordinal, error);
  if (ordinal < 0 || ordinal >= count) {
    return UsageError("--device cuda:%d on %s: there %s; take one from cuda:0 on", ordinal,
                      os::HostName(),
                      count == 1 ? "is one GPU" : absl::StrFormat("are %d GPUs", count));
  }
  std::unique_ptr<Device> device(new Device(ordinal));
  LOCKSTEP_RETURN_IF_ERROR(device->Start());
  return device;
}

Status Device::Start() {
  major_ = Attribute(cudaDevAttrComputeCapabilityMajor, ordinal_);
  minor_ = Attribute(cudaDevAttrComputeCapabilityMinor, ordinal_);
  integrated_ = Attribute(cudaDevAttrIntegrated, ordinal_) != 0;
  launch_.processors = Attribute(cudaDevAttrMultiProcessorCount, ordinal_);
  if (major_ < kLeastMajor) {
    return UsageError(
        "--device cuda:%d on %s: a GPU of capability %d.%d, and the kernels need %d.0 or later "
        "(Hopper, Blackwell, GB10); compute on the processor (--device cpu)",
        ordinal_, os::HostName(), major_, minor_, kLeastMajor);
  }
  if (Attribute(cudaDevAttrPageableMemoryAccess, ordinal_) == 0) {
    return UsageError(
        "--device cuda:%d on %s: the GPU does not read ordinary memory of the host; on x86 that "
        "takes Linux 6.1.24 or later and NVIDIA's open kernel modules (`nvidia-smi -q | grep "
        "Addressing` says HMM then); compute on the processor (--device cpu)",
        ordinal_, os::HostName());
  }
  MakeCurrent();
  Note(cudaStreamCreateWithFlags(&launch_.stream, cudaStreamNonBlocking), "making a stream");
  return std::exchange(fault_, OkStatus());
}

Device::~Device() {
  if (launch_.stream == nullptr || cudaSetDevice(ordinal_) != cudaSuccess) return;
  cudaStreamDestroy(launch_.stream);  // does not wait; whoever used it has
}

std::string Device::capability() const { return absl::StrFormat("sm_%d%d", major_, minor_); }

DeviceMemory Device::memory() const {
  MakeCurrent();
  size_t free = 0, total = 0;
  Note(cudaMemGetInfo(&free, &total), "reading how much memory is free");
  return {total, free, integrated_};
}

Status Device::MemoryError(uint64_t bytes, std::string_view what) const {
  const DeviceMemory now = memory();
  return MakeError(
      ErrorKind::kUsage, absl::StatusCode::kResourceExhausted,
      absl::StrFormat("cannot allocate %d MiB for %s on cuda:%d of %s, where %d of %d MiB are "
                      "free; use more ranks, a smaller --share for this one, a shorter "
                      "--max-model-len or fewer --max-num-seqs",
                      bytes >> 20, std::string(what), ordinal_, os::HostName(),
                      now.free_bytes >> 20, now.total_bytes >> 20));
}

StatusOr<DeviceBytes> Device::Take(uint64_t bytes, std::string_view what) const {
  if (bytes == 0) return DeviceBytes();
  MakeCurrent();
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, bytes);
  if (error == cudaErrorMemoryAllocation) return MemoryError(bytes, what);
  if (error != cudaSuccess) return ErrorOf(error, what);
  return DeviceBytes(static_cast<std::byte*>(memory), ordinal_);
}

StatusOr<Buffer> Device::TakeShared(uint64_t bytes, std::string_view what) const {
  if (bytes == 0) return Buffer();
  MakeCurrent();
  // Managed memory is given beyond what there is, and would move to the host and back every step.
  if (!integrated_ && bytes > memory().free_bytes) return MemoryError(bytes, what);
  void* memory = nullptr;
  cudaError_t error = cudaMallocManaged(&memory, bytes, cudaMemAttachGlobal);
  if (error == cudaErrorMemoryAllocation) return MemoryError(bytes, what);
  if (error != cudaSuccess) return ErrorOf(error, what);
  Buffer buffer = Buffer::Adopt(static_cast<std::byte*>(memory), bytes,
                                [](std::byte* data, uint64_t) { cudaFree(data); });
  if (!integrated_) {
    error = cudaMemAdvise(memory, bytes, cudaMemAdviseSetPreferredLocation,
                          {cudaMemLocationTypeDevice, ordinal_});
    if (error != cudaSuccess) return ErrorOf(error, what);
  }
  // By the device, so that pages come to lie there.
  Note(cudaMemsetAsync(memory, 0, bytes, launch_.stream), "zeroing memory");
  LOCKSTEP_RETURN_IF_ERROR(Wait());
  return buffer;
}

Status Device::Copy(const std::byte* from, uint64_t bytes, std::byte* to) const {
  MakeCurrent();
  Note(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, launch_.stream),
       "copying weights to it");
  return Wait();
}

void Device::MakeCurrent() const { Note(cudaSetDevice(ordinal_), "choosing it"); }

void Device::Note(cudaError_t error, const char* what) const {
  if (error != cudaSuccess && fault_.ok()) fault_ = ErrorOf(error, what);
}

Status Device::Wait(int64_t deadline_ns) const {
  // One that hung has had its time.
  const int64_t end_ns = NowNs() + (hangs_ ? 0 : deadline_ns);
  cudaError_t error = cudaErrorNotReady;
  for (uint64_t turn = 0; fault_.ok(); ++turn) {
    error = cudaStreamQuery(launch_.stream);
    if (error != cudaErrorNotReady) break;
    if (NowNs() > end_ns) {
      error = cudaErrorLaunchTimeout;
      hangs_ = true;
      break;
    }
    SpinTurn(turn);
  }
  if (fault_.ok()) Note(error, "computing");
  return std::exchange(fault_, OkStatus());
}

Status Device::ErrorOf(cudaError_t error, std::string_view what) const {
  const char* remedy = "this is a bug of lockstep or of the driver; start again, and report it";
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
      remedy = "this lockstep holds no kernels for this GPU; build it with a toolkit that knows it";
      break;
    case cudaErrorECCUncorrectable:
      remedy =
          "its memory is defective: `nvidia-smi -q -d ECC,ROW_REMAPPER`, and reset or replace it";
      break;
    case cudaErrorLaunchTimeout:
      remedy =
          "it does not come to an end; look for Xid in `dmesg`, and reset it or restart the host";
      break;
    case cudaErrorDevicesUnavailable:
      remedy =
          "another program has it for itself: `nvidia-smi -q -d COMPUTE` says in which mode it is";
      break;
    case cudaErrorMemoryAllocation:
      remedy = "its memory is full; end other programs on it, or use more ranks";
      break;
    default:
      break;
  }
  return InternalError("cuda:%d (sm_%d%d) on %s, %s: %s (%s); %s", ordinal_, major_, minor_,
                       os::HostName(), std::string(what), cudaGetErrorName(error),
                       cudaGetErrorString(error), remedy);
}

}  // namespace lockstep::kernels::cuda
