// An RDMA device as this process holds it, and what is made on it; each object ends in order.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "runtime/base/status.h"
#include "transport/rdma/ports.h"
#include "transport/rdma/queue_pair.h"
#include "transport/rdma/terms.h"
#include "transport/rdma/verbs_library.h"

namespace lockstep::rdma {

// A verbs object and the call that ends it.
template <typename Object>
using Owned = std::unique_ptr<Object, int (*)(Object*)>;

// All ports of all devices, as they are now. Devices that cannot be opened are left out.
StatusOr<std::vector<PortFacts>> ListPorts(const Verbs& verbs);

// An opened device with the window of one mesh registered at it; shared by the links that use it.
class Device {
 public:
  static StatusOr<std::shared_ptr<Device>> Open(const Verbs& verbs, const std::string& name,
                                                std::span<const std::byte> window);
  StatusOr<Owned<ibv_mr>> Register(std::span<std::byte> memory, int access) const;

  const Verbs& verbs() const { return verbs_; }
  const char* name() const { return name_.c_str(); }
  ibv_context* context() const { return context_.get(); }
  ibv_pd* domain() const { return domain_.get(); }
  std::span<const std::byte> window() const { return window_; }
  uint32_t window_key() const { return registered_ == nullptr ? 0 : registered_->lkey; }

 private:
  Device(const Verbs& verbs, std::string name, std::span<const std::byte> window);

  const Verbs& verbs_;
  const std::string name_;
  const std::span<const std::byte> window_;
  // In the order in which they are made.
  Owned<ibv_context> context_;
  Owned<ibv_pd> domain_;
  Owned<ibv_mr> registered_;
};

// A queue pair of a device. It receives from the beginning, and sends once it is connected.
class DevicePair : public QueuePair {
 public:
  virtual const Terms& terms() const = 0;
  // To the peer's that these terms describe; once. The peer must have done so before the first
  // packet leaves.
  virtual Status Connect(const Terms& peer) = 0;
};

// `choice` is of this device.
StatusOr<std::unique_ptr<DevicePair>> MakeQueuePair(std::shared_ptr<Device> device,
                                                    const Choice& choice, Mode mode);

}  // namespace lockstep::rdma
