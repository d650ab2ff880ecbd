// What a group has on its GPU: a stream of its own, all ranks' slots in pinned memory of the host,
// which callers read and write, and their mirror on the device, from which NCCL sends and into
// which it receives.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "collectives/nccl/nccl_library.h"

namespace lockstep::nccl {

class Device {
 public:
  // On GPU `index`, which this thread uses from then on. `library` outlives the device.
  static StatusOr<std::unique_ptr<Device>> Open(const Library& library, int index, int ranks,
                                                size_t slot_bytes);
  // Waits a bounded time for the stream. What a stream that does not end still uses stays.
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int index() const { return index_; }
  cudaStream_t stream() const { return stream_; }
  std::span<std::byte> Slot(int rank, size_t bytes) const { return {host_ + At(rank), bytes}; }
  std::byte* Mirror(int rank) const { return device_ + At(rank); }

  // CUDA's current device is the thread's own, GPU 0 at first, and whatever a thread calls takes
  // memory on its current one: before calls, by every thread that uses the group.
  Status Enter() const;
  // On the stream, in the order of the calls.
  Status Upload(int rank, size_t bytes) const;
  Status Download(int rank, size_t bytes) const;
  Status Mark() const;
  // Whether everything before the last Mark() is done.
  StatusOr<bool> Reached() const;

 private:
  Device(const Library& library, int index, size_t stride)
      : library_(library), index_(index), stride_(stride) {}
  size_t At(int rank) const { return static_cast<size_t>(rank) * stride_; }
  Status Check(cudaError_t error, const char* what) const {
    return error == cudaSuccess ? OkStatus() : CudaFailed(library_, error, what, index_);
  }
  Status Allocate(int ranks);
  bool Drained() const;

  const Library& library_;
  int index_;
  size_t stride_;
  std::byte* host_ = nullptr;
  std::byte* device_ = nullptr;
  cudaStream_t stream_ = nullptr;
  cudaEvent_t event_ = nullptr;
};

}  // namespace lockstep::nccl
