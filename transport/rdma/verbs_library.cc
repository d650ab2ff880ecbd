#include "transport/rdma/verbs_library.h"

#include <dlfcn.h>

#include <cerrno>
#include <cstring>
#include <string>

namespace lockstep::rdma {
namespace {

#ifdef __APPLE__
constexpr const char* kLibrary = "librdma.dylib";
constexpr const char* kRemedy = "RDMA needs macOS 26.2 and 'rdma_ctl enable' in recovery mode";
#else
constexpr const char* kLibrary = "libibverbs.so.1";
constexpr const char* kRemedy = "install it (Debian: libibverbs1 ibverbs-providers)";
#endif

// dlsym finds the default version of a symbol: for these, that of the header, not the one that the
// library keeps for programs of 2006.
template <typename Function>
bool Find(void* library, const char* name, Function* function, std::string* missing) {
  *function = reinterpret_cast<Function>(dlsym(library, name));
  if (*function == nullptr) *missing = name;
  return *function != nullptr;
}

StatusOr<Verbs> Load() {
  void* library = dlopen(kLibrary, RTLD_NOW | RTLD_LOCAL);  // stays: its providers have threads
  if (library == nullptr) {
    return UsageError("--collective rdma needs %s, which is not there: %s; or use tcp", kLibrary,
                      kRemedy);
  }
  Verbs verbs{};
  std::string missing;
  const auto find = [&](const char* name, auto* function) {
    return Find(library, name, function, &missing);
  };
  bool all = find("ibv_get_device_list", &verbs.get_device_list) &&
             find("ibv_free_device_list", &verbs.free_device_list) &&
             find("ibv_get_device_name", &verbs.get_device_name) &&
             find("ibv_open_device", &verbs.open_device) &&
             find("ibv_close_device", &verbs.close_device) &&
             find("ibv_query_device", &verbs.query_device) &&
             find("ibv_query_port", &verbs.query_port) && find("ibv_query_gid", &verbs.query_gid) &&
             find("ibv_alloc_pd", &verbs.alloc_pd) && find("ibv_dealloc_pd", &verbs.dealloc_pd) &&
             find("ibv_reg_mr", &verbs.reg_mr) && find("ibv_dereg_mr", &verbs.dereg_mr) &&
             find("ibv_create_comp_channel", &verbs.create_comp_channel) &&
             find("ibv_destroy_comp_channel", &verbs.destroy_comp_channel) &&
             find("ibv_create_cq", &verbs.create_cq) && find("ibv_destroy_cq", &verbs.destroy_cq) &&
             find("ibv_get_cq_event", &verbs.get_cq_event) &&
             find("ibv_ack_cq_events", &verbs.ack_cq_events) &&
             find("ibv_create_qp", &verbs.create_qp) && find("ibv_modify_qp", &verbs.modify_qp) &&
             find("ibv_destroy_qp", &verbs.destroy_qp);
#ifdef __linux__
  all = all && find("_ibv_query_gid_table", &verbs.query_gid_table);
#endif
  if (all) return verbs;
  return UsageError("%s has no %s: it is too old; install rdma-core 33 or later, or use tcp",
                    kLibrary, missing);
}

}  // namespace

StatusOr<const Verbs*> LoadVerbs() {
  static const StatusOr<Verbs> loaded = Load();
  if (!loaded.ok()) return loaded.status();
  return &*loaded;
}

Status VerbsFailed(const char* what, const char* device, int error) {
  struct Row {
    int error;
    const char* remedy;
  };
  static const Row rows[] = {
      {ENOMEM,
       "the device is out of queues, or this process may not pin memory: see 'ulimit -l', "
       "and raise it to unlimited in /etc/security/limits.conf"},
      {EPERM,
       "this process may not use the device: add its user to the group of "
       "/dev/infiniband/uverbs*"},
      {EACCES,
       "this process may not use the device: add its user to the group of "
       "/dev/infiniband/uverbs*"},
      {ENODEV, "the device has gone: see 'dmesg' and 'ibv_devices'"},
      {EBUSY,
       "the device still holds what a killed process left: 'rdma resource show qp' names "
       "it; if nothing does, restart the machine"},
      {EINVAL, "the device or its driver does not have what is asked for: see 'ibv_devinfo -v'"},
      {EOPNOTSUPP, "the device cannot do this: try the other --rdma-mode"},
      {ENOSYS, "the driver cannot do this: load the kernel module ib_uverbs, update rdma-core"},
      {ETIMEDOUT,
       "the peer's address does not resolve: see 'ip neigh'; the ports must be in one "
       "subnet"},
      {EHOSTUNREACH, "there is no route from this port to the peer's: see 'ip route get'"},
      {ENETUNREACH, "there is no route from this port to the peer's: see 'ip route get'"},
  };
  const char* remedy = "see 'dmesg'";
  for (const Row& row : rows) {
    if (row.error == error) remedy = row.remedy;
  }
  return UsageError("cannot %s on the RDMA device %s: %s; %s", what, device, std::strerror(error),
                    remedy);
}

Status CompletionFailed(ibv_wc_status status, uint32_t vendor_error) {
  struct Row {
    ibv_wc_status status;
    const char* meaning;
  };
  static const Row rows[] = {
      {IBV_WC_RETRY_EXC_ERR,
       "does not answer by RDMA any more: its process or machine died, or the link is down or "
       "loses packets (see 'rdma link', 'ethtool -S')"},
      {IBV_WC_RNR_RETRY_EXC_ERR, "gave its RDMA queue no buffers in time: a bug of lockstep"},
      {IBV_WC_WR_FLUSH_ERR, "lost its RDMA connection: an earlier error ended it"},
      {IBV_WC_REM_ACCESS_ERR, "refused an RDMA write: it is outside the memory that it gave"},
      {IBV_WC_REM_OP_ERR, "could not carry out an RDMA operation: see 'dmesg' there"},
      {IBV_WC_REM_INV_REQ_ERR,
       "refused an RDMA message: longer than its buffers, or its device differs"},
      {IBV_WC_LOC_PROT_ERR, "cannot be sent to: memory is not registered, a bug of lockstep"},
      {IBV_WC_LOC_LEN_ERR, "sent an RDMA message that is longer than the buffers here"},
      {IBV_WC_LOC_QP_OP_ERR, "cannot be sent to: the RDMA queue is broken; see 'dmesg'"},
      {IBV_WC_FATAL_ERR, "cannot be sent to: the RDMA device failed; see 'dmesg'"},
      {IBV_WC_RESP_TIMEOUT_ERR, "did not answer an RDMA request in time"},
  };
  const char* meaning = "lost its RDMA connection";
  for (const Row& row : rows) {
    if (row.status == status) meaning = row.meaning;
  }
  return PeerLostError("%s (completion status %d, vendor error 0x%x)", meaning,
                       static_cast<int>(status), vendor_error);
}

}  // namespace lockstep::rdma
