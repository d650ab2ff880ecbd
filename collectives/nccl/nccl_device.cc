#include "collectives/nccl/nccl_device.h"

#include <poll.h>

#include <cstring>

#include "runtime/base/clock.h"
#include "runtime/base/log.h"

namespace lockstep::nccl {
namespace {

// How long kernels of an aborted communicator may take to end.
constexpr int64_t kDrainMs = 5'000;

}  // namespace

StatusOr<std::unique_ptr<Device>> Device::Open(const Library& library, int index, int ranks,
                                               size_t slot_bytes) {
  // One line of distance, so that slots do not share cache sets evenly, and room for the padding of
  // an empty one.
  const size_t stride = (slot_bytes + 127) / 64 * 64;
  std::unique_ptr<Device> device(new Device(library, index, stride));
  LOCKSTEP_RETURN_IF_ERROR(device->Enter());
  LOCKSTEP_RETURN_IF_ERROR(device->Allocate(ranks));
  return device;
}

Status Device::Allocate(int ranks) {
  const size_t total = At(ranks);
  void* memory = nullptr;
  LOCKSTEP_RETURN_IF_ERROR(
      Check(library_.host_alloc(&memory, total, cudaHostAllocDefault), "pin memory of the host"));
  host_ = static_cast<std::byte*>(memory);
  std::memset(host_, 0, total);
  LOCKSTEP_RETURN_IF_ERROR(Check(library_.device_alloc(&memory, total), "allocate memory"));
  device_ = static_cast<std::byte*>(memory);
  LOCKSTEP_RETURN_IF_ERROR(
      Check(library_.stream_create(&stream_, cudaStreamNonBlocking), "make a stream"));
  return Check(library_.event_create(&event_, cudaEventDisableTiming), "make an event");
}

// cudaFree waits for whatever runs on the GPU, without a deadline: only behind an empty stream.
bool Device::Drained() const {
  const Deadline deadline = Deadline::After(kDrainMs);
  while (library_.stream_query(stream_) == cudaErrorNotReady) {
    if (deadline.Passed()) return false;
    (void)poll(nullptr, 0, 1);
  }
  return true;
}

Device::~Device() {
  (void)Enter();
  if (stream_ != nullptr && !Drained()) {
    log::Warning(
        "GPU %d does not end what NCCL has begun there: its memory stays taken until this process "
        "ends; see 'nvidia-smi' and 'dmesg'",
        index_);
    return;
  }
  if (event_ != nullptr) (void)library_.event_destroy(event_);
  if (stream_ != nullptr) (void)library_.stream_destroy(stream_);
  if (device_ != nullptr) (void)library_.device_free(device_);
  if (host_ != nullptr) (void)library_.host_free(host_);
}

Status Device::Enter() const { return Check(library_.set_device(index_), "use CUDA"); }

Status Device::Upload(int rank, size_t bytes) const {
  return Check(
      library_.copy(Mirror(rank), host_ + At(rank), bytes, cudaMemcpyHostToDevice, stream_),
      "copy a slot to the device");
}

Status Device::Download(int rank, size_t bytes) const {
  return Check(
      library_.copy(host_ + At(rank), Mirror(rank), bytes, cudaMemcpyDeviceToHost, stream_),
      "copy a slot from the device");
}

Status Device::Mark() const {
  return Check(library_.event_record(event_, stream_), "record an event");
}

StatusOr<bool> Device::Reached() const {
  const cudaError_t state = library_.event_query(event_);
  if (state == cudaErrorNotReady) return false;
  LOCKSTEP_RETURN_IF_ERROR(Check(state, "wait for the stream"));
  return true;
}

}  // namespace lockstep::nccl
