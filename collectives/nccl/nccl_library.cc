#include "collectives/nccl/nccl_library.h"

#include <dlfcn.h>

#include <string>
#include <vector>

namespace lockstep::nccl {
namespace {

// dlopen's own search first (the package's place, LD_LIBRARY_PATH), then where the toolkit is.
constexpr const char* kToolkit = "/usr/local/cuda/lib64/";

// Libraries stay: NCCL has threads.
StatusOr<void*> Open(const std::vector<std::string>& names, const char* remedy) {
  std::string why;
  for (const char* folder : {"", kToolkit}) {
    for (const std::string& name : names) {
      void* library = dlopen((folder + name).c_str(), RTLD_NOW | RTLD_LOCAL);
      if (library != nullptr) return library;
      if (why.empty()) why = dlerror();
    }
  }
  return UsageError("cannot load %s for --collective nccl: %s; %s, or use --collective tcp",
                    names.front(), why, remedy);
}

// The symbols of one library.
class Finder {
 public:
  Finder(void* library, std::string* missing) : library_(library), missing_(missing) {}
  template <typename Function>
  void Find(const char* name, Function* function) {
    *function = reinterpret_cast<Function>(dlsym(library_, name));
    if (*function == nullptr && missing_->empty()) *missing_ = name;
  }

 private:
  void* library_;
  std::string* missing_;
};

void FindNccl(Finder finder, Library* library) {
  finder.Find("ncclGetVersion", &library->get_version);
  finder.Find("ncclGetErrorString", &library->error_string);
  finder.Find("ncclGetLastError", &library->last_error);
  finder.Find("ncclGetUniqueId", &library->get_unique_id);
  finder.Find("ncclCommInitRankConfig", &library->comm_init_rank_config);
  finder.Find("ncclCommGetAsyncError", &library->comm_get_async_error);
  finder.Find("ncclCommFinalize", &library->comm_finalize);
  finder.Find("ncclCommDestroy", &library->comm_destroy);
  finder.Find("ncclCommAbort", &library->comm_abort);
  finder.Find("ncclGroupStart", &library->group_start);
  finder.Find("ncclGroupEnd", &library->group_end);
  finder.Find("ncclSend", &library->send);
  finder.Find("ncclRecv", &library->receive);
  finder.Find("ncclAllReduce", &library->all_reduce);
}

void FindCuda(Finder finder, Library* library) {
  finder.Find("cudaGetDeviceCount", &library->device_count);
  finder.Find("cudaSetDevice", &library->set_device);
  finder.Find("cudaGetErrorString", &library->cuda_error_string);
  finder.Find("cudaHostAlloc", &library->host_alloc);
  finder.Find("cudaMalloc", &library->device_alloc);
  finder.Find("cudaFreeHost", &library->host_free);
  finder.Find("cudaFree", &library->device_free);
  finder.Find("cudaMemcpyAsync", &library->copy);
  finder.Find("cudaStreamCreateWithFlags", &library->stream_create);
  finder.Find("cudaStreamQuery", &library->stream_query);
  finder.Find("cudaStreamDestroy", &library->stream_destroy);
  finder.Find("cudaEventCreateWithFlags", &library->event_create);
  finder.Find("cudaEventRecord", &library->event_record);
  finder.Find("cudaEventQuery", &library->event_query);
  finder.Find("cudaEventDestroy", &library->event_destroy);
}

StatusOr<Library> Load() {
  LOCKSTEP_ASSIGN_OR_RETURN(void* const cuda,
                            Open({"libcudart.so.13", "libcudart.so.12", "libcudart.so"},
                                 "install the CUDA runtime (NVIDIA's cuda-cudart package)"));
  LOCKSTEP_ASSIGN_OR_RETURN(void* const nccl,
                            Open({"libnccl.so.2"}, "install NCCL (NVIDIA's libnccl2 package)"));
  Library library{};
  std::string missing;
  FindCuda(Finder(cuda, &missing), &library);
  FindNccl(Finder(nccl, &missing), &library);
  if (library.get_version == nullptr || !missing.empty()) {
    return UsageError(
        "the NCCL or CUDA runtime of this machine has no %s: it is too old; install NCCL %s or "
        "later, or use --collective tcp",
        missing, VersionText(kOldestVersion));
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckLibrary(library));
  return library;
}

// NCCL's own words for what went wrong last, which may be none, or end with a newline.
std::string LastWords(const Library& library, ncclComm_t communicator) {
  const char* words = library.last_error(communicator);
  std::string text = words == nullptr ? "" : words;
  while (!text.empty() && (text.back() == '\n' || text.back() == ' ')) text.pop_back();
  return text;
}

struct Meaning {
  ncclResult_t result;
  ErrorKind kind;
  const char* remedy;
};

const Meaning& MeaningOf(ncclResult_t result) {
  static const Meaning meanings[] = {
      {ncclRemoteError, ErrorKind::kPeerLost,
       "a process ended or the network between the machines broke: the log of the other rank says "
       "which"},
      {ncclSystemError, ErrorKind::kPeerLost,
       "check that the machines reach each other on every network they have, since NCCL chooses "
       "one by itself (NCCL_SOCKET_IFNAME=eth0 chooses for it, NCCL_DEBUG=INFO shows what it "
       "chose), and that /dev/shm is large enough in a container"},
      {ncclUnhandledCudaError, ErrorKind::kInternal,
       "see 'nvidia-smi' and, for the GPU's own errors (Xid), 'dmesg' on that machine"},
      {ncclInternalError, ErrorKind::kInternal,
       "install the same NCCL and driver on every machine; NCCL_DEBUG=WARN says more"},
      {ncclInvalidArgument, ErrorKind::kInternal, "this is a bug of lockstep"},
      {ncclInvalidUsage, ErrorKind::kUsage,
       "every rank needs a GPU of its own, and the same version of NCCL; NCCL_DEBUG=WARN says "
       "more"},
  };
  static const Meaning unknown = {ncclInternalError, ErrorKind::kInternal,
                                  "NCCL_DEBUG=WARN says more"};
  for (const Meaning& meaning : meanings) {
    if (meaning.result == result) return meaning;
  }
  return unknown;
}

}  // namespace

std::string VersionText(int code) {
  return absl::StrFormat("%d.%d.%d", code / 10'000, code / 100 % 100, code % 100);
}

Status CheckLibrary(const Library& library) {
  int version = 0;
  const ncclResult_t asked = library.get_version(&version);
  if (asked != ncclSuccess || version < kOldestVersion) {
    return UsageError("this machine has NCCL %s: install %s or later, or use --collective tcp",
                      VersionText(version), VersionText(kOldestVersion));
  }
  int devices = 0;
  const cudaError_t counted = library.device_count(&devices);
  if (counted == cudaSuccess && devices > 0) return OkStatus();
  return UsageError(
      "NCCL needs a CUDA device and this machine has none (the driver says: %s); use --collective "
      "tcp, shm or rdma",
      counted == cudaSuccess ? "no devices" : library.cuda_error_string(counted));
}

StatusOr<const Library*> LoadNccl() {
  static const StatusOr<Library> loaded = Load();
  if (!loaded.ok()) return loaded.status();
  return &*loaded;
}

Status NcclFailed(const Library& library, ncclComm_t communicator, ncclResult_t result,
                  const Attempt& attempt) {
  const Meaning& meaning = MeaningOf(result);
  std::string cause = library.error_string(result);
  const std::string words = LastWords(library, communicator);
  if (!words.empty()) cause += " (" + words + ")";
  if (meaning.kind == ErrorKind::kPeerLost) {
    return PeerLostError("%s cannot be reached by NCCL, says %s %s: %s; %s", attempt.peers,
                         attempt.rank, attempt.doing, cause, meaning.remedy);
  }
  return MakeError(meaning.kind, absl::StrFormat("NCCL failed on %s %s: %s; %s", attempt.rank,
                                                 attempt.doing, cause, meaning.remedy));
}

Status CudaFailed(const Library& library, cudaError_t error, const char* what, int device) {
  const char* text = library.cuda_error_string(error);
  if (error == cudaErrorMemoryAllocation) {
    return UsageError(
        "cannot %s on GPU %d: %s; free memory of the machine or of the GPU ('nvidia-smi' shows who "
        "has it), or use --collective tcp",
        what, device, text);
  }
  return InternalError("cannot %s on GPU %d: %s; see 'nvidia-smi', and 'dmesg' for its own errors",
                       what, device, text);
}

}  // namespace lockstep::nccl
