// The functions of FakeNccl's table; included by nccl_fake.h alone.
#pragma once

#include "tests/collectives/nccl_fake.h"

namespace lockstep {

struct FakeTable {
  using Call = FakeNccl::Call;
  static FakeNccl& Fake() { return *FakeNccl::current_; }

#define LOCKSTEP_FAKE_ENTER(function, type)       \
  FakeNccl& fake = Fake();                        \
  std::unique_lock<std::mutex> lock(fake.mutex_); \
  if (const int code = fake.Enter(function); code != 0) return static_cast<type>(code)

  // --- NCCL ---

  static ncclResult_t GetVersion(int* version) {
    LOCKSTEP_FAKE_ENTER("ncclGetVersion", ncclResult_t);
    *version = fake.version;
    return ncclSuccess;
  }
  static const char* ErrorString(ncclResult_t result) {
    return result == ncclRemoteError ? "remote process exited or there was a network error"
                                     : "another error";
  }
  static const char* LastError(ncclComm_t) { return Fake().words_.c_str(); }
  static ncclResult_t GetUniqueId(ncclUniqueId* id) {
    LOCKSTEP_FAKE_ENTER("ncclGetUniqueId", ncclResult_t);
    std::memset(id, 0, sizeof(*id));
    id->internal[3] = static_cast<char>(0xfe);
    id->internal[127] = static_cast<char>(++fake.ids_);
    fake.cliques_[{id->internal, sizeof(id->internal)}] = std::make_shared<FakeNccl::Clique>();
    return ncclSuccess;
  }
  static ncclResult_t Init(ncclComm_t* handle, int size, ncclUniqueId id, int rank,
                           ncclConfig_t* config) {
    LOCKSTEP_FAKE_ENTER("ncclCommInitRankConfig", ncclResult_t);
    const auto found = fake.cliques_.find({id.internal, sizeof(id.internal)});
    if (config->blocking != 0) fake.Fault("a communicator that blocks");
    if (found == fake.cliques_.end()) return ncclInvalidArgument;
    const std::shared_ptr<FakeNccl::Clique> clique = found->second;
    const int device = FakeNccl::current_device_;
    clique->size = size;
    if (clique->device_of.count(rank) > 0) fake.Fault("an id was used twice");
    bool shares_gpu = false;
    for (const auto& [other, its] : clique->device_of) shares_gpu |= its == device;
    clique->device_of[rank] = device;
    auto communicator = std::make_shared<FakeNccl::Communicator>();
    communicator->rank = rank;
    communicator->device = device;
    communicator->clique = clique;
    *handle = reinterpret_cast<ncclComm_t>(communicator.get());
    fake.communicators_[*handle] = communicator;
    // Also without slowness: this is how NCCL does it.
    (void)fake.Later(
        communicator,
        [&fake, clique] {
          return fake.joins_complete && static_cast<int>(clique->device_of.size()) == clique->size;
        },
        [] {});
    if (shares_gpu) communicator->state = ncclInvalidUsage;
    return communicator->state == ncclSuccess ? ncclInProgress : communicator->state;
  }
  static ncclResult_t GetAsyncError(ncclComm_t handle, ncclResult_t* state) {
    LOCKSTEP_FAKE_ENTER("ncclCommGetAsyncError", ncclResult_t);
    const FakeNccl::Shared communicator = fake.Find(handle);
    if (communicator == nullptr) return ncclInvalidArgument;
    *state = fake.Look(communicator);
    return ncclSuccess;
  }
  static ncclResult_t Finalize(ncclComm_t handle) {
    LOCKSTEP_FAKE_ENTER("ncclCommFinalize", ncclResult_t);
    const FakeNccl::Shared communicator = fake.Find(handle);
    if (communicator == nullptr || !Idle(fake, *communicator)) return ncclInvalidArgument;
    FakeNccl::Clique& clique = *communicator->clique;
    clique.finalizing.insert(communicator->rank);
    // Ranks of one machine wait for each other, and see who is gone.
    return fake.Later(
        communicator,
        [&fake, &clique, communicator] {
          fake.Progress();
          if (communicator->kernels > 0) return false;
          if (!clique.gone.empty()) communicator->state = ncclRemoteError;
          return !clique.gone.empty() || static_cast<int>(clique.finalizing.size()) == clique.size;
        },
        [communicator] { communicator->finalized = true; });
  }
  static ncclResult_t Destroy(ncclComm_t handle) {
    LOCKSTEP_FAKE_ENTER("ncclCommDestroy", ncclResult_t);
    const FakeNccl::Shared communicator = fake.Find(handle);
    if (communicator == nullptr) return ncclInvalidArgument;
    if (!communicator->finalized) fake.Fault("destroyed without being finalized");
    FakeNccl::Forget(*communicator);
    fake.communicators_.erase(handle);
    return ncclSuccess;
  }
  static ncclResult_t Abort(ncclComm_t handle) {
    LOCKSTEP_FAKE_ENTER("ncclCommAbort", ncclResult_t);
    const FakeNccl::Shared communicator = fake.Find(handle);
    if (communicator == nullptr) return ncclInvalidArgument;
    if (FakeNccl::depth_ > 0) fake.Fault("an abort within a group of calls");
    fake.CheckDevice(communicator->device);
    ++fake.aborting_;
    fake.changed_.wait(lock, [&] { return fake.stuck_rank != communicator->rank; });
    --fake.aborting_;
    fake.changed_.notify_all();
    communicator->aborted = true;
    FakeNccl::Forget(*communicator);
    // Nobody reads what it sent any more.
    for (auto& [pair, messages] : communicator->clique->messages) {
      if (pair.first == communicator->rank) messages.clear();
    }
    communicator->clique->gone.insert(communicator->rank);
    fake.communicators_.erase(handle);
    return ncclSuccess;
  }
  static bool Idle(FakeNccl& fake, const FakeNccl::Communicator& communicator) {
    if (communicator.state == ncclInProgress) fake.Fault("a call while another is in progress");
    return communicator.state == ncclSuccess;
  }

  static ncclResult_t GroupStart() {
    LOCKSTEP_FAKE_ENTER("ncclGroupStart", ncclResult_t);
    ++FakeNccl::depth_;
    return ncclSuccess;
  }
  static ncclResult_t GroupEnd() {
    FakeNccl& fake = Fake();
    std::lock_guard lock(fake.mutex_);
    --FakeNccl::depth_;
    std::vector<Call> calls = std::move(FakeNccl::calls_);
    FakeNccl::calls_.clear();
    if (const int code = fake.Enter("ncclGroupEnd"); code != 0) {
      return static_cast<ncclResult_t>(code);
    }
    if (calls.empty()) return ncclSuccess;
    const FakeNccl::Shared communicator = calls[0].communicator;
    FakeNccl::Stream* stream = calls[0].stream;
    // The first time it connects to the others, who have to come.
    communicator->clique->connected.insert(communicator->rank);
    return fake.Later(
        communicator,
        [communicator] {
          const FakeNccl::Clique& clique = *communicator->clique;
          return static_cast<int>(clique.connected.size()) == clique.size;
        },
        [&fake, stream, calls = std::move(calls)] {
          ++calls[0].communicator->kernels;
          FakeNccl::Queue(stream, FakeNccl::Kernel(calls, fake.slow_abort_looks));
        });
  }
  // Within a group only, as this group does it.
  static ncclResult_t Append(FakeNccl& fake, Call call, ncclComm_t handle, cudaStream_t stream) {
    call.communicator = fake.Find(handle);
    if (call.communicator == nullptr) return ncclInvalidArgument;
    if (nccl::Failed(call.communicator->state)) return call.communicator->state;
    if (!Idle(fake, *call.communicator)) return ncclInvalidArgument;
    if (FakeNccl::depth_ != 1) fake.Fault("a call outside of a group of calls");
    call.stream = fake.streams_[stream].get();
    if (call.stream->device != call.communicator->device) fake.Fault("a stream of another GPU");
    if (call.from != nullptr) fake.CheckInside(fake.device_, call.from, call.bytes);
    if (call.to != nullptr) fake.CheckInside(fake.device_, call.to, call.bytes);
    if (call.bytes == 0) return ncclSuccess;  // and nothing happens
    if (call.kind == Call::kSum) call.peer = call.communicator->sums++;
    FakeNccl::calls_.push_back(call);
    // NCCL may say either.
    return fake.polls > 0 ? ncclInProgress : ncclSuccess;
  }
  static ncclResult_t Send(const void* data, size_t count, ncclDataType_t, int peer,
                           ncclComm_t communicator, cudaStream_t stream) {
    LOCKSTEP_FAKE_ENTER("ncclSend", ncclResult_t);
    return Append(fake, {Call::kSend, data, nullptr, count, peer, nullptr, nullptr}, communicator,
                  stream);
  }
  static ncclResult_t Receive(void* data, size_t count, ncclDataType_t, int peer,
                              ncclComm_t communicator, cudaStream_t stream) {
    LOCKSTEP_FAKE_ENTER("ncclRecv", ncclResult_t);
    return Append(fake, {Call::kReceive, nullptr, data, count, peer, nullptr, nullptr},
                  communicator, stream);
  }
  static ncclResult_t AllReduce(const void* from, void* to, size_t count, ncclDataType_t type,
                                ncclRedOp_t op, ncclComm_t communicator, cudaStream_t stream) {
    LOCKSTEP_FAKE_ENTER("ncclAllReduce", ncclResult_t);
    if (type != ncclFloat32 || op != ncclSum) fake.Fault("another sum than of float32");
    return Append(fake, {Call::kSum, from, to, count * sizeof(float), 0, nullptr, nullptr},
                  communicator, stream);
  }

  // --- the CUDA runtime ---

  static cudaError_t DeviceCount(int* count) {
    LOCKSTEP_FAKE_ENTER("cudaGetDeviceCount", cudaError_t);
    *count = fake.devices;
    return fake.devices > 0 ? cudaSuccess : cudaErrorNoDevice;
  }
  static cudaError_t SetDevice(int device) {
    LOCKSTEP_FAKE_ENTER("cudaSetDevice", cudaError_t);
    if (device >= fake.devices) return cudaErrorInvalidDevice;
    FakeNccl::current_device_ = device;
    return cudaSuccess;
  }
  static const char* CudaErrorString(cudaError_t error) {
    return error == cudaErrorNoDevice ? "no CUDA-capable device is detected" : "a CUDA error";
  }
  static void* Allocate(std::map<void*, FakeNccl::Block>* memory, size_t bytes) {
    void* address = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    std::memset(address, 0xee, bytes);
    (*memory)[address] = {bytes, FakeNccl::rank_};
    return address;
  }
  static cudaError_t HostAlloc(void** memory, size_t bytes, unsigned int) {
    LOCKSTEP_FAKE_ENTER("cudaHostAlloc", cudaError_t);
    *memory = Allocate(&fake.host_, bytes);
    return cudaSuccess;
  }
  static cudaError_t DeviceAlloc(void** memory, size_t bytes) {
    LOCKSTEP_FAKE_ENTER("cudaMalloc", cudaError_t);
    *memory = Allocate(&fake.device_, bytes);
    return cudaSuccess;
  }
  static cudaError_t Free(FakeNccl& fake, std::map<void*, FakeNccl::Block>* memory, void* address) {
    if (memory->erase(address) == 0) fake.Fault("memory was freed that is not there");
    for (const auto& [handle, stream] : fake.streams_) {
      if (stream->rank == FakeNccl::rank_ && !stream->work.empty()) {
        fake.Fault("memory was freed that a stream may use");
      }
    }
    std::free(address);
    return cudaSuccess;
  }
  static cudaError_t HostFree(void* address) {
    LOCKSTEP_FAKE_ENTER("cudaFreeHost", cudaError_t);
    return Free(fake, &fake.host_, address);
  }
  static cudaError_t DeviceFree(void* address) {
    LOCKSTEP_FAKE_ENTER("cudaFree", cudaError_t);
    return Free(fake, &fake.device_, address);
  }
  static cudaError_t Copy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                          cudaStream_t handle) {
    LOCKSTEP_FAKE_ENTER("cudaMemcpyAsync", cudaError_t);
    const bool up = kind == cudaMemcpyHostToDevice;
    fake.CheckInside(up ? fake.device_ : fake.host_, to, bytes);
    fake.CheckInside(up ? fake.host_ : fake.device_, from, bytes);
    FakeNccl::Stream* stream = fake.streams_[handle].get();
    fake.CheckDevice(stream->device);
    FakeNccl::Queue(stream, [=] {
      std::memcpy(to, from, bytes);
      return true;
    });
    return cudaSuccess;
  }
  static cudaError_t StreamCreate(cudaStream_t* handle, unsigned int flags) {
    LOCKSTEP_FAKE_ENTER("cudaStreamCreateWithFlags", cudaError_t);
    if (flags != cudaStreamNonBlocking) fake.Fault("a stream that waits for the others");
    auto stream = std::make_unique<FakeNccl::Stream>();
    stream->device = FakeNccl::current_device_;
    stream->rank = FakeNccl::rank_;
    *handle = reinterpret_cast<cudaStream_t>(stream.get());
    fake.streams_[*handle] = std::move(stream);
    return cudaSuccess;
  }
  static cudaError_t StreamQuery(cudaStream_t handle) {
    LOCKSTEP_FAKE_ENTER("cudaStreamQuery", cudaError_t);
    fake.Progress();
    return fake.streams_[handle]->work.empty() ? cudaSuccess : cudaErrorNotReady;
  }
  static cudaError_t StreamDestroy(cudaStream_t handle) {
    LOCKSTEP_FAKE_ENTER("cudaStreamDestroy", cudaError_t);
    if (!fake.streams_[handle]->work.empty()) fake.Fault("a stream ended that was not empty");
    fake.streams_.erase(handle);
    return cudaSuccess;
  }
  static cudaError_t EventCreate(cudaEvent_t* handle, unsigned int) {
    LOCKSTEP_FAKE_ENTER("cudaEventCreateWithFlags", cudaError_t);
    auto event = std::make_unique<FakeNccl::Event>();
    *handle = reinterpret_cast<cudaEvent_t>(event.get());
    fake.events_[*handle] = std::move(event);
    return cudaSuccess;
  }
  static cudaError_t EventRecord(cudaEvent_t handle, cudaStream_t stream) {
    LOCKSTEP_FAKE_ENTER("cudaEventRecord", cudaError_t);
    FakeNccl::Event& event = *fake.events_[handle];
    event.stream = fake.streams_[stream].get();
    event.target = event.stream->queued;
    return cudaSuccess;
  }
  static cudaError_t EventQuery(cudaEvent_t handle) {
    LOCKSTEP_FAKE_ENTER("cudaEventQuery", cudaError_t);
    const FakeNccl::Event& event = *fake.events_[handle];
    if (event.stream == nullptr) return cudaSuccess;
    fake.CheckDevice(event.stream->device);
    fake.Progress();
    return event.stream->done >= event.target ? cudaSuccess : cudaErrorNotReady;
  }
  static cudaError_t EventDestroy(cudaEvent_t handle) {
    LOCKSTEP_FAKE_ENTER("cudaEventDestroy", cudaError_t);
    fake.events_.erase(handle);
    return cudaSuccess;
  }
#undef LOCKSTEP_FAKE_ENTER
};

inline const nccl::Library& FakeNccl::Table() {
  static const nccl::Library table = {
      .get_version = FakeTable::GetVersion,
      .error_string = FakeTable::ErrorString,
      .last_error = FakeTable::LastError,
      .get_unique_id = FakeTable::GetUniqueId,
      .comm_init_rank_config = FakeTable::Init,
      .comm_get_async_error = FakeTable::GetAsyncError,
      .comm_finalize = FakeTable::Finalize,
      .comm_destroy = FakeTable::Destroy,
      .comm_abort = FakeTable::Abort,
      .group_start = FakeTable::GroupStart,
      .group_end = FakeTable::GroupEnd,
      .send = FakeTable::Send,
      .receive = FakeTable::Receive,
      .all_reduce = FakeTable::AllReduce,
      .device_count = FakeTable::DeviceCount,
      .set_device = FakeTable::SetDevice,
      .cuda_error_string = FakeTable::CudaErrorString,
      .host_alloc = FakeTable::HostAlloc,
      .device_alloc = FakeTable::DeviceAlloc,
      .host_free = FakeTable::HostFree,
      .device_free = FakeTable::DeviceFree,
      .copy = FakeTable::Copy,
      .stream_create = FakeTable::StreamCreate,
      .stream_query = FakeTable::StreamQuery,
      .stream_destroy = FakeTable::StreamDestroy,
      .event_create = FakeTable::EventCreate,
      .event_record = FakeTable::EventRecord,
      .event_query = FakeTable::EventQuery,
      .event_destroy = FakeTable::EventDestroy,
  };
  return table;
}

}  // namespace lockstep
