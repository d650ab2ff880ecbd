#include "collectives/membership.h"

#include <algorithm>
#include <cstring>
#include <fstream>

#include "collectives/backends.h"
#include "collectives/control.h"
#include "collectives/lifeline.h"
#include "collectives/secret.h"
#include "runtime/base/bytes.h"
#include "runtime/base/os.h"
#include "transport/fabric.h"

namespace lockstep {
namespace {

// Of the links that carry messages beside NCCL: nothing is exchanged over them.
constexpr size_t kMessageSlotBytes = 64;

void AddOnce(std::vector<std::string>* hosts, const std::string& host) {
  if (std::find(hosts->begin(), hosts->end(), host) == hosts->end()) hosts->push_back(host);
}

class LinkedMembership final : public Membership {
 public:
  LinkedMembership(const BootstrapOptions& options, std::string secret, Joined joined,
                   std::unique_ptr<ProcessManager> manager)
      : options_(options),
        key_(SessionKey(secret, joined.session)),
        members_(std::move(joined.members)),
        lifeline_(std::make_shared<Lifeline>()),
        manager_(std::move(manager)) {
    added_latency_ = options.added_latency;
    std::memcpy(&first_epoch_, joined.session.data(), sizeof(first_epoch_));
    for (const UniqueFd& socket : joined.connections) {
      if (socket.valid()) AddOnce(&control_hosts_, LocalEndpoint(socket.get()).host);
    }
    if (options.rank == 0) members_[0].address = control_hosts_.front();
    for (const Member& member : members_) {
      ranks_.push_back({static_cast<int>(member.rank), static_cast<int>(member.pid), member.host,
                        member.address});
      names_.push_back(ranks_.back().Name());
    }
    ControlOptions control;
    control.rank = options.rank;
    control.size = options.size;
    control.peer_timeout_ms = options.peer_timeout_ms;
    control.names = names_;
    control.lifeline = lifeline_;
    control.meter = &meter_;
    control_ = std::make_unique<ControlChannel>(std::move(control), std::move(joined.connections));
    lifeline_->SetAnnouncer([this](const Status& reason) { control_->Announce(reason); });
  }

  ~LinkedMembership() override {
    lifeline_->SetAnnouncer({});
    if (manager_ != nullptr && left_ && !lifeline_->broken()) manager_->Finish();
  }

  const std::vector<RankInfo>& ranks() const override { return ranks_; }

  int local_rank() const override {
    int place = 0;
    for (int rank = 0; rank < options_.rank; ++rank) place += SameMachine(rank);
    return place;
  }
  int local_size() const override {
    if (options_.ranks_on_this_host > 0) return options_.ranks_on_this_host;
    int count = 0;
    for (int rank = 0; rank < options_.size; ++rank) count += SameMachine(rank);
    return count;
  }

  Status Health() const override { return lifeline_->broken() ? lifeline_->reason() : OkStatus(); }
  void Abort(const Status& reason) override { lifeline_->Abort(reason); }
  void Leave() override {
    left_ = true;
    control_->Leave();
  }
  std::vector<RankNews> News() const override { return control_->News(); }

  // All ranks are in this together: what stops one stops all, with its reason.
  StatusOr<std::unique_ptr<Group>> OpenGroup(const std::string& collective,
                                             size_t slot_bytes) override {
    StatusOr<std::unique_ptr<Group>> group =
        TryOpenGroup(collective.empty() ? options_.collective : collective,
                     slot_bytes == 0 ? options_.slot_bytes : slot_bytes);
    if (!group.ok()) {
      lifeline_->Abort(group.status());
      return group;
    }
    std::vector<int> first_ranks;
    for (int rank = 0; rank < options_.size; ++rank) first_ranks.push_back(FirstOnMachineOf(rank));
    (*group)->set_machines(first_ranks);
    return group;
  }
  StatusOr<std::unique_ptr<Group>> OpenPartGroup(int first, int count, size_t slot_bytes) override {
    StatusOr<std::unique_ptr<Group>> group = TryOpenPartGroup(first, count, slot_bytes);
    if (!group.ok()) {
      lifeline_->Abort(group.status());
      return group;
    }
    std::vector<int> first_ranks;
    for (int rank = first; rank < first + count; ++rank)
      first_ranks.push_back(FirstOnMachineOf(rank, first) - first);
    (*group)->set_machines(first_ranks);
    return group;
  }
  uint64_t GroupBytes(size_t slot_bytes, int of_ranks) const override {
    const auto ranks = static_cast<uint64_t>(of_ranks == 0 ? options_.size : of_ranks);
    if (options_.collective == "mpi") return ranks * slot_bytes;
    // In pinned memory and on the GPU, which on some machines is the same memory.
    if (options_.collective == "nccl")
      return ranks * (2 * slot_bytes + LinkWindowBytes(kMessageSlotBytes));
    // Over shared memory a rank reads the others' windows where they are.
    return LinkWindowBytes(slot_bytes) * (options_.collective == "shm" ? 1 : ranks);
  }

  StatusOr<Mesh> OpenMesh(const std::string& transport, size_t window_bytes) override {
    return TryOpenMesh(transport, window_bytes, meshes_++);
  }

  Proof Sign(std::span<const std::byte> data) const override { return HmacSha256(key_, data); }

  // Where the other ranks may find this one: the chosen interface, or the address by which it talks
  // with rank 0, and where several machines take part every other address it has.
  StatusOr<std::vector<std::string>> DataHosts(const std::string& transport) const override {
    if (!options_.interface.empty()) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::string host, AddressOfInterface(options_.interface));
      return std::vector<std::string>{host};
    }
    bool one_machine = true;
    for (int rank = 0; rank < options_.size; ++rank) one_machine = one_machine && SameMachine(rank);
    // An RDMA port hardly ever has the address by which ranks of one machine talk.
    if (one_machine && transport != "rdma") return control_hosts_;
    std::vector<std::string> hosts;
    for (const std::string& host : control_hosts_) {
      if (!IsLoopback(host)) AddOnce(&hosts, host);
    }
    for (const NetworkInterface& interface : ListInterfaces()) {
      if (!interface.up || interface.loopback) continue;
      for (const std::string& host : interface.addresses) AddOnce(&hosts, host);
    }
    return hosts;
  }

 private:
  StatusOr<std::unique_ptr<Group>> TryOpenGroup(const std::string& collective, size_t slot_bytes) {
    const uint32_t number = meshes_++;
    GroupOptions group = OptionsOf(number, slot_bytes);
    if (added_latency_ != nullptr && FindTransport(collective) == nullptr) {
      return UsageError(
          "--collective %s: latency is added by links, which only tcp, shm and rdma have; use one "
          "of these, or leave --added-latency-us out",
          collective);
    }
    if (collective == "mpi") {
      // Also a barrier: MPI's own start waits without a deadline.
      const Deadline deadline = Deadline::After(options_.start_timeout_ms);
      LOCKSTEP_RETURN_IF_ERROR(control_->Share(number, "mpi", deadline).status());
      return MakeMpiGroup(std::move(group));
    }
    if (collective == "nccl") return OpenNcclGroup(std::move(group), number);
    const size_t window_bytes = LinkWindowBytes(slot_bytes);
    LOCKSTEP_ASSIGN_OR_RETURN(Mesh mesh, TryOpenMesh(collective, window_bytes, number));
    return MakeLinkGroup(std::move(group), FindTransport(collective), Delayed(std::move(mesh)));
  }

  GroupOptions OptionsOf(uint32_t number, size_t slot_bytes) const {
    GroupOptions group;
    group.rank = options_.rank;
    group.size = options_.size;
    group.slot_bytes = slot_bytes;
    group.exchange_timeout_ms = options_.exchange_timeout_ms;
    group.verify_exchanges = options_.verify_exchanges;
    if (crowded()) group.spin_us = 0;
    group.epoch = first_epoch_ + number;
    group.names = names_;
    group.lifeline = lifeline_;
    return group;
  }

  StatusOr<std::unique_ptr<Group>> TryOpenPartGroup(int first, int count, size_t slot_bytes) {
    const uint32_t number = meshes_++;
    GroupOptions group = OptionsOf(number, slot_bytes);
    group.rank -= first;
    group.size = count;
    group.first_rank = first;
    group.names.assign(names_.begin() + first, names_.begin() + first + count);
    if (count == 1) return MakeSingleGroup(std::move(group));
    const std::string& collective = options_.collective;
    const char* transport = FindTransport(collective);
    if (transport == nullptr) {
      return UsageError(
          "--collective %s has all ranks in one group, so a stage of several ranks cannot use it; "
          "use tcp, shm or rdma, or as many --stages as ranks",
          collective);
    }
    LOCKSTEP_ASSIGN_OR_RETURN(FabricOptions mesh, MeshOptions(collective, number));
    mesh.rank = group.rank;
    mesh.size = count;
    mesh.names = group.names;
    mesh.window_bytes = LinkWindowBytes(slot_bytes);
    LOCKSTEP_ASSIGN_OR_RETURN(Mesh connected, ConnectMesh(std::move(mesh), number, first));
    return MakeLinkGroup(std::move(group), transport, Delayed(std::move(connected)));
  }

  Mesh Delayed(Mesh mesh) const {
    for (std::unique_ptr<Link>& link : mesh.links) {
      if (link != nullptr && added_latency_ != nullptr)
        link = MakeDelayedLink(std::move(link), added_latency_);
    }
    return mesh;
  }

  // Two numbers: of the links that carry its messages, and of what NCCL's ranks tell each other.
  StatusOr<std::unique_ptr<Group>> OpenNcclGroup(GroupOptions group, uint32_t number) {
    GroupOptions messages = group;
    messages.slot_bytes = kMessageSlotBytes;
    const size_t window_bytes = LinkWindowBytes(kMessageSlotBytes);
    LOCKSTEP_ASSIGN_OR_RETURN(Mesh mesh, TryOpenMesh("tcp", window_bytes, number));
    NcclOptions nccl;
    nccl.local_rank = local_rank();
    nccl.local_size = local_size();
    nccl.start_timeout_ms = options_.start_timeout_ms;
    LOCKSTEP_ASSIGN_OR_RETURN(nccl.messages,
                              MakeLinkGroup(std::move(messages), "tcp", std::move(mesh)));
    nccl.share = [this, topic = meshes_++](const std::string& text) {
      return control_->Share(topic, text, Deadline::After(options_.start_timeout_ms));
    };
    return MakeNcclGroup(std::move(group), std::move(nccl));
  }

  StatusOr<Mesh> TryOpenMesh(const std::string& transport, size_t window_bytes, uint32_t number) {
    LOCKSTEP_ASSIGN_OR_RETURN(FabricOptions mesh, MeshOptions(transport, number));
    mesh.window_bytes = window_bytes;
    return ConnectMesh(std::move(mesh), number, 0);
  }

  // All ranks share their addresses, whichever of them (from `first` on) the mesh is of.
  StatusOr<Mesh> ConnectMesh(FabricOptions mesh, uint32_t number, int first) {
    const Deadline deadline = Deadline::After(options_.start_timeout_ms);
    const int size = mesh.size;
    LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Fabric> fabric, OpenFabric(std::move(mesh)));
    LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> all,
                              control_->Share(number, fabric->address(), deadline));
    const std::vector<std::string> addresses(all.begin() + first, all.begin() + first + size);
    StatusOr<Mesh> connected = fabric->Connect(addresses, deadline);
    if (!connected.ok()) return lifeline_->Overrule(connected.status());
    return connected;
  }

  bool SameMachine(int rank) const {
    return members_[rank].machine == members_[options_.rank].machine;
  }
  // Of the ranks from `first` on.
  int FirstOnMachineOf(int rank, int first = 0) const {
    while (members_[first].machine != members_[rank].machine) ++first;
    return first;
  }

  StatusOr<FabricOptions> MeshOptions(const std::string& transport, uint32_t number) const {
    FabricOptions mesh;
    mesh.rank = options_.rank;
    mesh.size = options_.size;
    mesh.transport = transport;
    mesh.rdma_mode = options_.rdma_mode;
    mesh.mesh = number;
    mesh.names = names_;
    mesh.sign = [key = key_](std::span<const std::byte> data) { return HmacSha256(key, data); };
    mesh.nonce = [] {
      const Challenge random = RandomChallenge();
      std::array<std::byte, 16> nonce;
      std::copy_n(random.begin(), nonce.size(), nonce.begin());
      return nonce;
    };
    mesh.interrupted = [lifeline = lifeline_] {
      return lifeline->broken() ? lifeline->reason() : OkStatus();
    };
    if (transport == "shm") {
      for (int rank = 0; rank < options_.size; ++rank) {
        if (SameMachine(rank)) continue;
        return UsageError(
            "--collective shm works only between ranks of one machine, but %s is on another than "
            "%s; "
            "use --collective tcp",
            names_[rank], names_[options_.rank]);
      }
      return mesh;
    }
    LOCKSTEP_ASSIGN_OR_RETURN(mesh.hosts, DataHosts(transport));
    return mesh;
  }

  const BootstrapOptions options_;
  const std::string key_;
  std::vector<Member> members_;
  std::vector<RankInfo> ranks_;
  std::vector<std::string> names_;
  std::vector<std::string> control_hosts_;
  std::shared_ptr<Lifeline> lifeline_;
  std::unique_ptr<ProcessManager> manager_;
  std::unique_ptr<ControlChannel> control_;
  uint32_t first_epoch_ = 0;
  uint32_t meshes_ = 0;
  bool left_ = false;
};

class SingleMembership final : public Membership {
 public:
  explicit SingleMembership(const BootstrapOptions& options)
      : slot_bytes_(options.slot_bytes),
        ranks_{{0, os::ProcessId(), os::HostName(), "127.0.0.1"}},
        lifeline_(std::make_shared<Lifeline>()) {}

  const std::vector<RankInfo>& ranks() const override { return ranks_; }
  int local_rank() const override { return 0; }
  int local_size() const override { return 1; }
  Status Health() const override { return lifeline_->broken() ? lifeline_->reason() : OkStatus(); }
  void Abort(const Status& reason) override { lifeline_->Abort(reason); }
  void Leave() override {}
  std::vector<RankNews> News() const override { return {{.report = meter_.Report()}}; }
  StatusOr<std::unique_ptr<Group>> OpenPartGroup(int, int, size_t slot_bytes) override {
    return OpenGroup("", slot_bytes);
  }
  uint64_t GroupBytes(size_t slot_bytes, int) const override { return slot_bytes; }
  // No other rank can ask for more.
  Proof Sign(std::span<const std::byte> data) const override { return HmacSha256("alone", data); }
  StatusOr<std::unique_ptr<Group>> OpenGroup(const std::string&, size_t slot_bytes) override {
    GroupOptions group;
    group.slot_bytes = slot_bytes == 0 ? slot_bytes_ : slot_bytes;
    group.names = {ranks_[0].Name()};
    group.lifeline = lifeline_;
    return MakeSingleGroup(std::move(group));
  }
  StatusOr<Mesh> OpenMesh(const std::string&, size_t window_bytes) override {
    Mesh mesh;
    LOCKSTEP_ASSIGN_OR_RETURN(mesh.window, Window::Allocate(window_bytes));
    mesh.links.resize(1);
    return mesh;
  }
  StatusOr<std::vector<std::string>> DataHosts(const std::string&) const override {
    return std::vector<std::string>{ranks_[0].address};
  }

 private:
  size_t slot_bytes_;
  std::vector<RankInfo> ranks_;
  std::shared_ptr<Lifeline> lifeline_;
};

}  // namespace

std::string RankInfo::Name() const {
  return NameOf(static_cast<uint32_t>(rank), host, static_cast<uint32_t>(pid));
}

bool Membership::crowded() const {
  return local_size() > static_cast<int>(os::OnlineCpus().size());
}

std::string MachineId() {
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::string id;
  if (file >> id) return id;
  return os::HostName();
}

std::unique_ptr<Membership> MakeMembership(const BootstrapOptions& options, std::string secret,
                                           Joined joined, std::unique_ptr<ProcessManager> manager) {
  return std::make_unique<LinkedMembership>(options, std::move(secret), std::move(joined),
                                            std::move(manager));
}

std::unique_ptr<Membership> MakeSingleMembership(const BootstrapOptions& options) {
  return std::make_unique<SingleMembership>(options);
}

}  // namespace lockstep
