// One GPU: whether the kernels can run there, its stream, its memory, and what its errors mean.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/kernels/backend.h"
#include "runtime/kernels/cuda/kernels.h"

namespace lockstep::kernels::cuda {

// Memory of a device, which the host does not see.
class DeviceBytes {
 public:
  DeviceBytes() = default;
  DeviceBytes(std::byte* data, int device) : data_(data), device_(device) {}
  ~DeviceBytes();
  DeviceBytes(DeviceBytes&& other) noexcept;
  DeviceBytes& operator=(DeviceBytes&& other) noexcept;
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  int device_ = 0;
};

class Device {
 public:
  // An error says what is missing: a driver, the GPU, a capability, memory that both sides see.
  static StatusOr<std::unique_ptr<Device>> Open(int ordinal);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Launch& launch() const { return launch_; }
  std::string capability() const;  // "sm_121"
  DeviceMemory memory() const;

  // Of the device alone. `what` names the owner in the error.
  StatusOr<DeviceBytes> Take(uint64_t bytes, std::string_view what) const;
  // Zeroed memory that both sides see, kept with the device where it has its own.
  StatusOr<Buffer> TakeShared(uint64_t bytes, std::string_view what) const;
  // Returns when the device has it; `from` may be ordinary memory.
  Status Copy(const std::byte* from, uint64_t bytes, std::byte* to) const;

  // CUDA launches on the calling thread's device: this one from now on.
  void MakeCurrent() const;
  // Keeps the first error until Wait.
  void Note(cudaError_t error, const char* what) const;
  // Until the stream is done, or it has taken too long: less than what the others wait for this
  // rank (--exchange-timeout-ms), so that it tells them why. A device that hung is not waited for
  // again.
  Status Wait(int64_t deadline_ns = 25'000'000'000) const;

 private:
  explicit Device(int ordinal) : ordinal_(ordinal) {}
  Status Start();
  Status ErrorOf(cudaError_t error, std::string_view what) const;
  Status MemoryError(uint64_t bytes, std::string_view what) const;

  int ordinal_;
  int major_ = 0, minor_ = 0;
  bool integrated_ = false;
  Launch launch_;
  mutable Status fault_;
  mutable bool hangs_ = false;  // it did not come to an end once
};

}  // namespace lockstep::kernels::cuda
