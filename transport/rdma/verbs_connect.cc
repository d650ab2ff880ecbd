// From an authenticated socket to a connected queue pair.
#include <algorithm>
#include <map>

#include "runtime/base/log.h"
#include "transport/backends.h"
#include "transport/rdma/rdma_link.h"
#include "transport/rdma/terms.h"
#include "transport/rdma/verbs_device.h"

namespace lockstep {
namespace rdma {
namespace {

constexpr uint32_t kFullMtu = 4096;

class Devices final : public RdmaDevices {
 public:
  Devices(const Verbs& verbs, std::string mode) : verbs_(verbs), mode_(std::move(mode)) {}

  StatusOr<std::vector<std::string>> Hosts(const std::vector<std::string>& hosts) override {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<PortFacts> ports, ListPorts(verbs_));
    return HostsWithPort(ports, hosts);
  }

  StatusOr<std::unique_ptr<Link>> MakeLink(UniqueFd socket, std::span<const std::byte> window,
                                           Deadline deadline) override {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<PortFacts> ports, ListPorts(verbs_));
    LOCKSTEP_ASSIGN_OR_RETURN(const Choice choice,
                              ChoosePort(ports, LocalEndpoint(socket.get()).host));
    LOCKSTEP_ASSIGN_OR_RETURN(const std::shared_ptr<Device> device,
                              OpenOnce(choice.port->device, window));
    LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<DevicePair> pair, MakePair(device, choice));
    LOCKSTEP_ASSIGN_OR_RETURN(const Terms peer,
                              ExchangeTerms(socket.get(), pair->terms(), deadline));
    LOCKSTEP_RETURN_IF_ERROR(CompareTerms(pair->terms(), peer));
    LOCKSTEP_RETURN_IF_ERROR(pair->Connect(peer));
    LOCKSTEP_RETURN_IF_ERROR(AwaitReady(socket.get(), deadline));
    Describe(pair->terms(), peer);
    LinkPath path = {
        .address = LocalEndpoint(socket.get()).host,
        .device = absl::StrFormat("%s, GID %d", choice.port->Name(), choice.gid->index),
        .mtu = pair->terms().mtu,
        .megabits = pair->terms().megabits};
    return MakeLinkOver(std::move(pair), std::move(socket), window, std::move(path));
  }

 private:
  StatusOr<std::shared_ptr<Device>> OpenOnce(const std::string& name,
                                             std::span<const std::byte> window) {
    std::weak_ptr<Device>& known = opened_[name];
    std::shared_ptr<Device> device = known.lock();
    if (device == nullptr) {
      LOCKSTEP_ASSIGN_OR_RETURN(device, Device::Open(verbs_, name, window));
      known = device;
    }
    return device;
  }

  StatusOr<std::unique_ptr<DevicePair>> MakePair(const std::shared_ptr<Device>& device,
                                                 const Choice& choice) const {
    if (mode_ == "uc") return MakeQueuePair(device, choice, Mode::kUnreliable);
    StatusOr<std::unique_ptr<DevicePair>> pair = MakeQueuePair(device, choice, Mode::kReliable);
    if (pair.ok() || mode_ == "rc") return pair;
    // Thunderbolt has UC only.
    StatusOr<std::unique_ptr<DevicePair>> other = MakeQueuePair(device, choice, Mode::kUnreliable);
    return other.ok() ? std::move(other) : std::move(pair);
  }

  // Nobody sends before both can receive.
  static Status AwaitReady(int socket, Deadline deadline) {
    std::byte ready{'r'};
    LOCKSTEP_RETURN_IF_ERROR(SendAll(socket, {&ready, 1}, deadline));
    return ReceiveAll(socket, {&ready, 1}, deadline);
  }

  static void Describe(const Terms& own, const Terms& peer) {
    const bool reliable = own.mode == Mode::kReliable;
    log::Info("rdma: %s to %s on %s, %s, packets of %d bytes, %g Gb/s", own.device, peer.device,
              peer.host, reliable ? "rc" : "uc", own.mtu, own.megabits / 1e3);
    if (own.megabits != peer.megabits) {
      log::Warning("rdma: %s runs at %g Gb/s, %s on %s at %g: the slower one decides", own.device,
                   own.megabits / 1e3, peer.device, peer.host, peer.megabits / 1e3);
    }
    if (reliable && own.mtu < kFullMtu) {
      log::Warning(
          "rdma: packets on %s have %d bytes only; for the full %d run 'ip link set dev %s mtu "
          "9000' on both sides, and on the switch",
          own.device, own.mtu, kFullMtu, own.interface);
    }
  }

  const Verbs& verbs_;
  const std::string mode_;
  std::map<std::string, std::weak_ptr<Device>> opened_;  // the links hold them
};

}  // namespace
}  // namespace rdma

StatusOr<std::unique_ptr<RdmaDevices>> OpenRdmaDevices(const std::string& mode) {
  LOCKSTEP_ASSIGN_OR_RETURN(const rdma::Verbs* verbs, rdma::LoadVerbs());
  return std::make_unique<rdma::Devices>(*verbs, mode);
}

}  // namespace lockstep
