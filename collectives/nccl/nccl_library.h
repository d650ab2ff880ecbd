// libnccl and the CUDA runtime, loaded when they are first needed, so that the program runs where
// there is neither, and as a table, so that tests can put another one in its place. Every call into
// either library goes through it.
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <cstddef>
#include <string>

#include "runtime/base/status.h"

namespace lockstep::nccl {

struct Library {
  decltype(&::ncclGetVersion) get_version;
  decltype(&::ncclGetErrorString) error_string;
  decltype(&::ncclGetLastError) last_error;
  decltype(&::ncclGetUniqueId) get_unique_id;
  decltype(&::ncclCommInitRankConfig) comm_init_rank_config;
  decltype(&::ncclCommGetAsyncError) comm_get_async_error;
  decltype(&::ncclCommFinalize) comm_finalize;
  decltype(&::ncclCommDestroy) comm_destroy;
  decltype(&::ncclCommAbort) comm_abort;
  decltype(&::ncclGroupStart) group_start;
  decltype(&::ncclGroupEnd) group_end;
  decltype(&::ncclSend) send;
  decltype(&::ncclRecv) receive;
  decltype(&::ncclAllReduce) all_reduce;

  decltype(&::cudaGetDeviceCount) device_count;
  decltype(&::cudaSetDevice) set_device;
  decltype(&::cudaGetErrorString) cuda_error_string;
  // C++ overloads these.
  cudaError_t (*host_alloc)(void** memory, size_t bytes, unsigned int flags);
  cudaError_t (*device_alloc)(void** memory, size_t bytes);
  decltype(&::cudaFreeHost) host_free;
  decltype(&::cudaFree) device_free;
  decltype(&::cudaMemcpyAsync) copy;
  decltype(&::cudaStreamCreateWithFlags) stream_create;
  decltype(&::cudaStreamQuery) stream_query;
  decltype(&::cudaStreamDestroy) stream_destroy;
  cudaError_t (*event_create)(cudaEvent_t* event, unsigned int flags);
  decltype(&::cudaEventRecord) event_record;
  decltype(&::cudaEventQuery) event_query;
  decltype(&::cudaEventDestroy) event_destroy;
};

// Communicators that do not block are there since 2.14, but aborts by another thread than the one
// that uses them hang before 2.19.1 (its developers in issue 992 of NVIDIA/nccl, 2023-09-13).
inline constexpr int kOldestVersion = NCCL_VERSION(2, 19, 1);

// A usage error with the remedy where a library or a GPU is missing.
StatusOr<const Library*> LoadNccl();
// "2.28.9"; `code` as ncclGetVersion has it, from 2.9 on.
std::string VersionText(int code);
// Of a table that is loaded or made: versions, a GPU. LoadNccl() has done it.
Status CheckLibrary(const Library& library);

// Neither done nor under way.
inline bool Failed(ncclResult_t result) {
  return result != ncclSuccess && result != ncclInProgress;
}

// What was tried, for the sentence of an error.
struct Attempt {
  std::string rank;   // who tried: "rank 0 (spark-1, pid 4711)"
  std::string peers;  // with whom: one name, or several with "or" between them
  std::string doing;  // "in exchange 7, moving slots", "making a communicator"
};
// `communicator` may be null. A lost peer's error begins with the peers' names.
Status NcclFailed(const Library& library, ncclComm_t communicator, ncclResult_t result,
                  const Attempt& attempt);
// "cannot pin memory on GPU 0: out of memory; ..."
Status CudaFailed(const Library& library, cudaError_t error, const char* what, int device);

}  // namespace lockstep::nccl
