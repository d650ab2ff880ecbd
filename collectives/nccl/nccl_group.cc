// Exchanges by NCCL: slots are filled and read in memory of the host, and travel from GPU to GPU.
//
// A send or receive of NCCL's is a kernel that waits on the GPU for its partner, and kernels of one
// stream run one after another. Two ranks that sent parts in different orders would each wait in a
// kernel for the one that the other has behind it, for ever. So a slot travels whole, by one group
// of calls that holds everything of an exchange: traits().slots_in_parts is false. And so messages,
// whose order follows from what two ranks do and not from what all do, do not go by NCCL at all: a
// receive between requests would occupy the GPU for as long as nobody asks anything.
//
// The sums are lockstep's own, in rank order over the slots, so that the bits are those of the
// other groups. NCCL adds where any order will do (SumInAnyOrder).
#include "collectives/nccl/nccl_group.h"

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_join.h"
#include "collectives/nccl/nccl_communicator.h"
#include "collectives/nccl/nccl_device.h"
#include "collectives/wait.h"
#include "runtime/base/check.h"

namespace lockstep::nccl {
namespace {

constexpr int64_t kNapMs = 1;

// "rank 1 (a, pid 1) or rank 2 (b, pid 2)": NCCL does not say which of its peers fails it.
std::string PeersOf(const GroupOptions& options) {
  std::vector<std::string> peers = options.names;
  peers.erase(peers.begin() + options.rank);
  return absl::StrJoin(peers, " or ");
}

// Where there is only one peer, it is the one that is lost.
Status BlamePeer(const Status& error, const GroupOptions& options) {
  if (options.size != 2 || KindOf(error) != ErrorKind::kPeerLost) return error;
  return WithLostRank(error, 1 - options.rank);
}

struct Peer {
  bool expected = false;
  bool published = false;
  bool taken = false;
};

class NcclGroup final : public Group {
 public:
  NcclGroup(const Library& library, GroupOptions options, std::unique_ptr<Group> messages,
            std::unique_ptr<Device> device, std::unique_ptr<Communicator> communicator)
      : Group(options.rank, options.size),
        library_(library),
        options_(std::move(options)),
        traits_{.name = "nccl",
                .slot_bytes = options_.slot_bytes,
                .reads_in_place = false,
                .slots_in_parts = false,
                .any_order_is_fixed = false},
        messages_(std::move(messages)),
        device_(std::move(device)),
        communicator_(std::move(communicator)),
        peers_(static_cast<size_t>(size())) {}

  ~NcclGroup() override {
    (void)device_->Enter();
    // Whoever leaves an exchange open has given up, and its kernels may wait for ever.
    const bool healthy = failure_.ok() && !options_.lifeline->broken() && !open_;
    healthy ? communicator_->Finish(*options_.lifeline) : communicator_->Abort();
  }

  const GroupTraits& traits() const override { return traits_; }

  StatusOr<std::span<std::byte>> Begin(size_t bytes) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_ && bytes <= traits_.slot_bytes);
    open_ = true;
    launched_ = arrived_ = false;
    ++exchange_;
    part_bytes_ = bytes;
    pending_ = 2 * (size() - 1);
    std::fill(peers_.begin(), peers_.end(), Peer{});
    return slot_ = device_->Slot(rank(), bytes);
  }

  Status ExpectPart(int peer, SlotPart part) override {
    LOCKSTEP_CHECK(!peers_[peer].expected);
    peers_[peer].expected = true;
    return Announce(peer, part);
  }

  Status PublishPart(int peer, SlotPart part) override {
    LOCKSTEP_CHECK(!peers_[peer].published);
    peers_[peer].published = true;
    return Announce(peer, part);
  }

  // All slots come at once.
  StatusOr<std::span<const std::byte>> Wait(int peer) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(open_);
    if (peer == rank()) return slot_;
    LOCKSTEP_CHECK(launched_ && !peers_[peer].taken);
    peers_[peer].taken = true;
    LOCKSTEP_RETURN_IF_ERROR(AwaitSlots());
    return device_->Slot(peer, part_bytes_);
  }

  // Nobody has published anything where the group adds by itself (SumSlots).
  Status End() override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(open_ && (launched_ || pending_ == 2 * (size() - 1)));
    if (launched_) LOCKSTEP_RETURN_IF_ERROR(AwaitSlots());
    open_ = false;
    return OkStatus();
  }

  Status SendReceive(int to, std::span<const std::byte> data, int from, std::span<std::byte> buffer,
                     Patience patience) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_);
    const Status done = messages_->SendReceive(to, data, from, buffer, patience);
    return done.ok() ? done : Stop(done);
  }

  Status SumInAnyOrder(std::span<float> data) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_ && data.size_bytes() <= traits_.slot_bytes);
    ++exchange_;
    const std::span<std::byte> slot = device_->Slot(rank(), data.size_bytes());
    if (!data.empty()) std::memcpy(slot.data(), data.data(), slot.size());
    LOCKSTEP_RETURN_IF_ERROR(Add(data.size()));
    if (!data.empty()) std::memcpy(data.data(), slot.data(), slot.size());
    return OkStatus();
  }

  void Abort(const Status& reason) override { options_.lifeline->Abort(reason); }

 private:
  Status Health() {
    if (!failure_.ok()) return failure_;
    if (options_.lifeline->broken()) return Fail(options_.lifeline->reason());
    return OkStatus();
  }
  Status Fail(const Status& error) {
    if (!failure_.ok()) return failure_;
    return Stop(options_.lifeline->Overrule(BlamePeer(error, options_)));
  }
  // Kernels that wait for a peer which does not come would hold the stream, and the GPU, for ever.
  Status Stop(const Status& reason) {
    failure_ = reason;
    communicator_->Abort();
    return failure_;
  }

  // One part for each peer, equally long for all: the whole slot, or as much of it as the values of
  // a sum on a narrow wire fill.
  Status Announce(int peer, SlotPart part) {
    LOCKSTEP_CHECK(open_ && !launched_ && peer != rank() && part.offset == 0 &&
                   part.bytes <= slot_.size());
    LOCKSTEP_CHECK(pending_ == 2 * (size() - 1) || part.bytes == part_bytes_);
    part_bytes_ = part.bytes;
    return --pending_ == 0 ? Launch() : OkStatus();
  }

  Status Launch() {
    launched_ = true;
    LOCKSTEP_RETURN_IF_ERROR(Check(device_->Enter()));
    if (part_bytes_ > 0) LOCKSTEP_RETURN_IF_ERROR(Check(device_->Upload(rank(), part_bytes_)));
    // NCCL leaves out messages without bytes, but an empty exchange is a barrier.
    const size_t moved = std::max<size_t>(part_bytes_, 1);
    LOCKSTEP_RETURN_IF_ERROR(Issue([&](ncclComm_t communicator) {
      ncclResult_t result = ncclSuccess;
      for (int peer = 0; peer < size(); ++peer) {
        if (peer == rank()) continue;
        if (!Failed(result)) {
          result = library_.send(device_->Mirror(rank()), moved, ncclUint8, peer, communicator,
                                 device_->stream());
        }
        if (!Failed(result)) {
          result = library_.receive(device_->Mirror(peer), moved, ncclUint8, peer, communicator,
                                    device_->stream());
        }
      }
      return result;
    }));
    for (int peer = 0; peer < size() && part_bytes_ > 0; ++peer) {
      if (peer == rank()) continue;
      LOCKSTEP_RETURN_IF_ERROR(Check(device_->Download(peer, part_bytes_)));
    }
    return Check(device_->Mark());
  }

  // The sum over ranks of `count` values in the own slot.
  Status Add(size_t count) {
    // Without any value NCCL does nothing, but nobody may go on before all have come here.
    const size_t added = std::max<size_t>(count, 1);
    LOCKSTEP_RETURN_IF_ERROR(Check(device_->Enter()));
    LOCKSTEP_RETURN_IF_ERROR(Check(device_->Upload(rank(), added * sizeof(float))));
    LOCKSTEP_RETURN_IF_ERROR(Issue([&](ncclComm_t communicator) {
      std::byte* const values = device_->Mirror(rank());
      return library_.all_reduce(values, values, added, ncclFloat32, ncclSum, communicator,
                                 device_->stream());
    }));
    LOCKSTEP_RETURN_IF_ERROR(Check(device_->Download(rank(), added * sizeof(float))));
    LOCKSTEP_RETURN_IF_ERROR(Check(device_->Mark()));
    return AwaitMark();
  }

  Status Check(const Status& status) { return status.ok() ? status : Fail(status); }

  // Returns when the kernels are on the stream: what is put there next must come behind them. The
  // first time, NCCL connects to the peers, for which they have to come.
  template <typename Calls>
  Status Issue(Calls&& calls) {
    ncclResult_t state = communicator_->Issue(calls);
    if (state == ncclSuccess) return OkStatus();
    return Await([&]() -> StatusOr<bool> {
      if (state == ncclInProgress) state = communicator_->State();
      if (Failed(state)) return NcclError(state);
      return state == ncclSuccess;
    });
  }

  Status AwaitSlots() {
    if (arrived_) return OkStatus();
    LOCKSTEP_RETURN_IF_ERROR(AwaitMark());
    arrived_ = true;
    return OkStatus();
  }

  // The state is looked at last: kernels also end, without their data, when NCCL has failed.
  Status AwaitMark() {
    LOCKSTEP_RETURN_IF_ERROR(Check(device_->Enter()));
    return Await([&]() -> StatusOr<bool> {
      LOCKSTEP_ASSIGN_OR_RETURN(const bool reached, device_->Reached());
      const ncclResult_t state = communicator_->State();
      if (Failed(state)) return NcclError(state);
      return reached && state == ncclSuccess;
    });
  }

  template <typename Done>
  Status Await(Done&& is_done) {
    Backoff backoff(Patience::kStep, options_.spin_us, options_.exchange_timeout_ms);
    while (true) {
      const StatusOr<bool> done = is_done();
      if (!done.ok()) return Fail(done.status());
      if (*done) return OkStatus();
      LOCKSTEP_RETURN_IF_ERROR(Health());
      const int64_t nap_us = backoff.Next();
      if (backoff.expired()) return Fail(TimedOut());
      if (nap_us > 0) (void)poll(nullptr, 0, kNapMs);
    }
  }

  Status TimedOut() const {
    return PeerLostError(
        "%s sent nothing for %d ms in exchange %d%s: it is stuck, stopped or much slower than %s; "
        "see --exchange-timeout-ms",
        PeersOf(options_), options_.exchange_timeout_ms, exchange_,
        size() > 2 ? " (NCCL does not say which of them)" : "", options_.names[rank()]);
  }

  Status NcclError(ncclResult_t result) const {
    return NcclFailed(library_, communicator_->get(), result,
                      {.rank = options_.names[rank()],
                       .peers = PeersOf(options_),
                       .doing = absl::StrFormat("in exchange %d, %s", exchange_,
                                                open_ ? "moving slots" : "adding")});
  }

  const Library& library_;
  GroupOptions options_;
  GroupTraits traits_;
  std::unique_ptr<Group> messages_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Communicator> communicator_;  // ends before its stream and memory do
  std::vector<Peer> peers_;
  Status failure_;
  uint64_t exchange_ = 0;
  size_t part_bytes_ = 0;
  int pending_ = 0;  // parts of the open exchange that were not expected or published yet
  bool open_ = false;
  bool launched_ = false;
  bool arrived_ = false;
};

Status Connect(const Library& library, const GroupOptions& options, const ncclUniqueId& id,
               int64_t timeout_ms, Communicator* communicator) {
  const Deadline deadline = Deadline::After(timeout_ms);
  ncclResult_t state = communicator->Join(id, options.rank, options.size);
  while (state == ncclInProgress) {
    if (options.lifeline->broken()) return options.lifeline->reason();
    if (deadline.Passed()) {
      return BlamePeer(
          PeerLostError("%s did not join %s in NCCL's communicator within %d ms: check that the "
                        "machines reach each other on the network that NCCL chose (NCCL_DEBUG=INFO "
                        "shows it, NCCL_SOCKET_IFNAME=eth0 chooses another), or use --collective "
                        "tcp; see --start-timeout-ms",
                        PeersOf(options), options.names[options.rank], timeout_ms),
          options);
    }
    (void)poll(nullptr, 0, kNapMs);
    state = communicator->State();
  }
  if (state == ncclSuccess) return OkStatus();
  return BlamePeer(NcclFailed(library, communicator->get(), state,
                              {.rank = options.names[options.rank],
                               .peers = PeersOf(options),
                               .doing = "making a communicator"}),
                   options);
}

// NCCL takes two ranks on one GPU for an error.
StatusOr<int> DeviceOf(const Library& library, const NcclOptions& nccl) {
  int devices = 0;
  (void)library.device_count(&devices);
  if (nccl.local_size <= devices) return nccl.local_rank;
  return UsageError(
      "%d ranks run on this machine, but it has %d GPUs for them (as far as CUDA_VISIBLE_DEVICES, "
      "if set, lets it see), and NCCL needs one for each rank: start %d of them here, or use "
      "--collective tcp, shm or rdma",
      nccl.local_size, devices, devices);
}

StatusOr<ncclUniqueId> ShareId(const Library& library, const GroupOptions& options,
                               const NcclOptions& nccl) {
  int version = 0;
  (void)library.get_version(&version);
  ncclUniqueId id{};
  if (options.rank == 0) {
    if (const ncclResult_t made = library.get_unique_id(&id); made != ncclSuccess) {
      return NcclFailed(library, nullptr, made,
                        {.rank = options.names[0],
                         .peers = PeersOf(options),
                         .doing = "making a communicator's id"});
    }
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                            nccl.share(EncodeHello(version, options.rank == 0 ? &id : nullptr)));
  return DecodeHellos(texts, options.names);
}

}  // namespace

StatusOr<std::unique_ptr<Group>> MakeGroup(const Library& library, GroupOptions options,
                                           NcclOptions nccl) {
  LOCKSTEP_CHECK(nccl.messages != nullptr && nccl.messages->size() == options.size);
  LOCKSTEP_CHECK(options.names.size() == static_cast<size_t>(options.size));
  // What can fail on one rank alone comes first, before the others wait for it in NCCL.
  LOCKSTEP_ASSIGN_OR_RETURN(const int index, DeviceOf(library, nccl));
  LOCKSTEP_ASSIGN_OR_RETURN(std::unique_ptr<Device> device,
                            Device::Open(library, index, options.size, options.slot_bytes));
  LOCKSTEP_ASSIGN_OR_RETURN(const ncclUniqueId id, ShareId(library, options, nccl));
  auto communicator = std::make_unique<Communicator>(library, index);
  const Status connected = Connect(library, options, id, nccl.start_timeout_ms, communicator.get());
  if (!connected.ok()) return options.lifeline->Overrule(connected);
  return std::make_unique<NcclGroup>(library, std::move(options), std::move(nccl.messages),
                                     std::move(device), std::move(communicator));
}

}  // namespace lockstep::nccl

namespace lockstep {

StatusOr<std::unique_ptr<Group>> MakeNcclGroup(GroupOptions options, NcclOptions nccl) {
  LOCKSTEP_ASSIGN_OR_RETURN(const nccl::Library* library, nccl::LoadNccl());
  return nccl::MakeGroup(*library, std::move(options), std::move(nccl));
}

}  // namespace lockstep
