// libibverbs, loaded when it is first needed, so that the program runs where there is none. What
// the header makes inline (posting, polling) goes through the device's own table and needs no
// symbol.
#pragma once

#include <infiniband/verbs.h>

#include <cstddef>

#include "runtime/base/status.h"

namespace lockstep::rdma {

struct Verbs {
  decltype(&::ibv_get_device_list) get_device_list;
  decltype(&::ibv_free_device_list) free_device_list;
  decltype(&::ibv_get_device_name) get_device_name;
  decltype(&::ibv_open_device) open_device;
  decltype(&::ibv_close_device) close_device;
  decltype(&::ibv_query_device) query_device;
  decltype(&::ibv_query_port) query_port;
  decltype(&::ibv_query_gid) query_gid;
  decltype(&::ibv_alloc_pd) alloc_pd;
  decltype(&::ibv_dealloc_pd) dealloc_pd;
  decltype(&::ibv_reg_mr) reg_mr;
  decltype(&::ibv_dereg_mr) dereg_mr;
  decltype(&::ibv_create_comp_channel) create_comp_channel;
  decltype(&::ibv_destroy_comp_channel) destroy_comp_channel;
  decltype(&::ibv_create_cq) create_cq;
  decltype(&::ibv_destroy_cq) destroy_cq;
  decltype(&::ibv_get_cq_event) get_cq_event;
  decltype(&::ibv_ack_cq_events) ack_cq_events;
  decltype(&::ibv_create_qp) create_qp;
  decltype(&::ibv_modify_qp) modify_qp;
  decltype(&::ibv_destroy_qp) destroy_qp;
#ifdef __linux__
  decltype(&::_ibv_query_gid_table) query_gid_table;  // with types, which macOS does not have
#endif
};

// A usage error where there is no library, or a too old one.
StatusOr<const Verbs*> LoadVerbs();

// "cannot create a queue pair on mlx5_0: Cannot allocate memory; raise ..."
Status VerbsFailed(const char* what, const char* device, int error);
// What a completion's status means. The peer's name goes before it: "did not answer ...".
Status CompletionFailed(ibv_wc_status status, uint32_t vendor_error);

}  // namespace lockstep::rdma
