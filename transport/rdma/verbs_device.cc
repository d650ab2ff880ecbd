#include "transport/rdma/verbs_device.h"

#include <net/if.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace lockstep::rdma {
namespace {

// Megabits per second of one lane, by the code of the speed; lanes, by the code of the width.
uint32_t Megabits(uint8_t speed, uint8_t width) {
  uint32_t lane = 0;
  for (const auto& [code, megabits] : {std::pair<uint8_t, uint32_t>{1, 2'500},
                                       {2, 5'000},
                                       {4, 10'000},
                                       {8, 10'000},
                                       {16, 14'000},
                                       {32, 25'000},
                                       {64, 50'000},
                                       {128, 100'000}}) {
    if (code == speed) lane = megabits;
  }
  for (const auto& [code, lanes] :
       {std::pair<uint8_t, uint32_t>{1, 1}, {2, 4}, {4, 8}, {8, 12}, {16, 2}}) {
    if (code == width) return lane * lanes;
  }
  return 0;
}

// The kernel takes no buffer of 64 KiB or more.
constexpr size_t kMostGids = 1000;

std::string InterfaceName(uint32_t index) {
  char name[IF_NAMESIZE] = {};
  return index != 0 && if_indextoname(index, name) != nullptr ? name : "";
}

// `length` is that of the device's table.
std::vector<GidFacts> ListGids(const Verbs& verbs, ibv_context* context, int port,
                               [[maybe_unused]] int length) {
  std::vector<GidFacts> gids;
#ifdef __linux__
  std::vector<ibv_gid_entry> entries(kMostGids);
  const ssize_t count =
      verbs.query_gid_table(context, entries.data(), entries.size(), 0, sizeof(ibv_gid_entry));
  for (ssize_t i = 0; i < count; ++i) {
    const ibv_gid_entry& entry = entries[static_cast<size_t>(i)];
    if (entry.port_num != static_cast<uint32_t>(port)) continue;
    GidFacts facts;
    facts.index = static_cast<int>(entry.gid_index);
    std::memcpy(facts.gid.data(), entry.gid.raw, facts.gid.size());
    facts.type = entry.gid_type == IBV_GID_TYPE_ROCE_V2 ? GidType::kRoceV2 : GidType::kOther;
    facts.interface = InterfaceName(entry.ndev_ifindex);
    gids.push_back(std::move(facts));
  }
#else
  for (int index = 0; index < length; ++index) {
    ibv_gid gid{};
    GidFacts facts;
    facts.index = index;
    facts.type = GidType::kRoceV2;  // there is only one
    if (verbs.query_gid(context, static_cast<uint8_t>(port), index, &gid) != 0) continue;
    std::memcpy(facts.gid.data(), gid.raw, facts.gid.size());
    if (facts.gid != Gid{}) gids.push_back(facts);
  }
#endif
  return gids;
}

// The library's symbol takes the attributes of its first version, a prefix of today's that has all
// that is used here; the header hides that behind a cast of its own.
template <typename Attributes>
int QueryPortAs(int (*query)(ibv_context*, uint8_t, Attributes*), ibv_context* context,
                uint8_t port, ibv_port_attr* attributes) {
  return query(context, port, reinterpret_cast<Attributes*>(attributes));
}

StatusOr<PortFacts> ReadPort(const Verbs& verbs, ibv_context* context, const char* device,
                             int port) {
  ibv_port_attr attributes{};
  const int error = QueryPortAs(verbs.query_port, context, static_cast<uint8_t>(port), &attributes);
  if (error != 0) return VerbsFailed("query a port", device, error);
  PortFacts facts;
  facts.device = device;
  facts.port = port;
  facts.active = attributes.state == IBV_PORT_ACTIVE;
  facts.ethernet = attributes.link_layer == IBV_LINK_LAYER_ETHERNET;
  facts.mtu = 128u << attributes.active_mtu;
  facts.megabits = Megabits(attributes.active_speed, attributes.active_width);
  facts.largest_message = attributes.max_msg_sz;
  facts.gids = ListGids(verbs, context, port, attributes.gid_tbl_len);
  return facts;
}

// The devices of this moment; ends with the object.
class DeviceList {
 public:
  explicit DeviceList(const Verbs& verbs) : verbs_(verbs), list_(verbs.get_device_list(&count_)) {}
  ~DeviceList() {
    if (list_ != nullptr) verbs_.free_device_list(list_);
  }
  DeviceList(const DeviceList&) = delete;
  DeviceList& operator=(const DeviceList&) = delete;
  std::span<ibv_device*> devices() const {
    return {list_, list_ == nullptr ? 0 : static_cast<size_t>(count_)};
  }

 private:
  const Verbs& verbs_;
  int count_ = 0;
  ibv_device** list_;
};

}  // namespace

StatusOr<std::vector<PortFacts>> ListPorts(const Verbs& verbs) {
  std::vector<PortFacts> ports;
  const DeviceList list(verbs);
  for (ibv_device* device : list.devices()) {
    const Owned<ibv_context> context(verbs.open_device(device), verbs.close_device);
    ibv_device_attr attributes{};
    if (context == nullptr || verbs.query_device(context.get(), &attributes) != 0) continue;
    for (int port = 1; port <= attributes.phys_port_cnt; ++port) {
      StatusOr<PortFacts> facts =
          ReadPort(verbs, context.get(), verbs.get_device_name(device), port);
      if (facts.ok()) ports.push_back(std::move(*facts));
    }
  }
  return ports;
}

Device::Device(const Verbs& verbs, std::string name, std::span<const std::byte> window)
    : verbs_(verbs),
      name_(std::move(name)),
      window_(window),
      context_(nullptr, verbs.close_device),
      domain_(nullptr, verbs.dealloc_pd),
      registered_(nullptr, verbs.dereg_mr) {}

StatusOr<std::shared_ptr<Device>> Device::Open(const Verbs& verbs, const std::string& name,
                                               std::span<const std::byte> window) {
  std::shared_ptr<Device> device(new Device(verbs, name, window));
  const DeviceList list(verbs);
  errno = ENODEV;
  for (ibv_device* candidate : list.devices()) {
    if (verbs.get_device_name(candidate) != name) continue;
    device->context_.reset(verbs.open_device(candidate));
  }
  if (device->context_ == nullptr) return VerbsFailed("open a context", device->name(), errno);
  device->domain_.reset(verbs.alloc_pd(device->context()));
  if (device->domain_ == nullptr) {
    return VerbsFailed("allocate a protection domain", device->name(), errno);
  }
  if (!window.empty()) {
    const std::span<std::byte> memory(const_cast<std::byte*>(window.data()), window.size());
    LOCKSTEP_ASSIGN_OR_RETURN(device->registered_, device->Register(memory, 0));
  }
  return device;
}

StatusOr<Owned<ibv_mr>> Device::Register(std::span<std::byte> memory, int access) const {
  Owned<ibv_mr> registered(verbs_.reg_mr(domain(), memory.data(), memory.size(), access),
                           verbs_.dereg_mr);
  if (registered == nullptr) {
    const std::string what = absl::StrFormat("register %d KiB of memory", memory.size() >> 10);
    return VerbsFailed(what.c_str(), name(), errno);
  }
  return registered;
}

}  // namespace lockstep::rdma
