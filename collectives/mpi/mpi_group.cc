// Direct exchange over Open MPI's point-to-point calls. The sums are lockstep's own, in rank order,
// so that the bits are those of the other groups; MPI_Allreduce promises no order.
// The C++ bindings of MPI 2 need a library of their own.
#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>
#include <poll.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <utility>

#include "collectives/backends.h"
#include "collectives/open_mpi.h"
#include "collectives/slots.h"
#include "collectives/wait.h"
#include "runtime/base/check.h"

namespace lockstep {
namespace {

// MPI promises tags up to 32767 at least. The lowest bit tells exchanges from messages.
constexpr uint32_t kSequenceMask = 0x3fff;
enum class MessageKind : uint8_t { kExchange = 0, kMessage = 1 };
constexpr int64_t kNapMs = 1;

// MPI starts once per process, when the first group is made, and ends when the process does, unless
// a rank was lost: MPI_Finalize would wait for it.
std::mutex g_mpi_mutex;
std::atomic<bool> g_skip_finalize{false};

void FinalizeAtExit() {
  if (!g_skip_finalize.load()) (void)MPI_Finalize();
}

Status MpiFailed(const char* what, int code) {
  char text[MPI_MAX_ERROR_STRING] = {};
  int size = 0;
  (void)MPI_Error_string(code, text, &size);
  return PeerLostError("MPI: %s failed: %s", what, text);
}

Status StartMpi(int rank, int size) {
  std::lock_guard lock(g_mpi_mutex);
  int started = 0;
  (void)MPI_Initialized(&started);
  if (!started) {
    int level = 0;
    const int code = MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level);
    if (code != MPI_SUCCESS) return InternalError("MPI_Init_thread failed with code %d", code);
    (void)std::atexit(&FinalizeAtExit);
    if (level < MPI_THREAD_SERIALIZED) {
      return UsageError(
          "this MPI cannot be called from several threads in turn; use --collective tcp or shm");
    }
  }
  (void)MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  int mpi_rank = -1, mpi_size = -1;
  (void)MPI_Comm_rank(MPI_COMM_WORLD, &mpi_rank);
  (void)MPI_Comm_size(MPI_COMM_WORLD, &mpi_size);
  if (mpi_rank != rank || mpi_size != size) {
    return UsageError(
        "mpirun started this process as rank %d of %d, but lockstep runs it as rank %d of %d; use "
        "the "
        "ranks of mpirun, or --collective tcp",
        mpi_rank, mpi_size, rank, size);
  }
  return OkStatus();
}

// One message in one direction between this rank and a peer.
struct Pending {
  MPI_Request request = MPI_REQUEST_NULL;
  std::span<const std::byte> buffer;
  bool active = false;
  bool receives = false;
};

struct Peer {
  uint32_t send_sequence = 0;
  uint32_t receive_sequence = 0;
  std::vector<Pending> sends;     // of the open exchange, or one message
  std::vector<Pending> receives;  // the same; parts that were waited for stay
  size_t taken = 0;               // receives that were waited for
};

class MpiGroup final : public Group {
 public:
  MpiGroup(GroupOptions options, MPI_Comm communicator)
      : Group(options.rank, options.size),
        options_(std::move(options)),
        traits_{.name = "mpi",
                .slot_bytes = options_.slot_bytes,
                .reads_in_place = false,
                .slots_in_parts = true,
                .any_order_is_fixed = false},
        communicator_(communicator),
        slots_(size(), options_.slot_bytes),
        peers_(size()) {
    for (Peer& peer : peers_) {
      peer.sends.reserve(kMostParts);
      peer.receives.reserve(kMostParts);
    }
  }

  ~MpiGroup() override {
    if (options_.lifeline->broken() || !failure_.ok()) {
      g_skip_finalize.store(true);
      return;
    }
    (void)MPI_Comm_free(&communicator_);
  }

  bool valid() const { return slots_.valid(); }
  const GroupTraits& traits() const override { return traits_; }

  StatusOr<std::span<std::byte>> Begin(size_t bytes) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_ && bytes <= traits_.slot_bytes);
    open_ = true;
    ++exchange_;
    return slot_ = slots_.Of(rank(), bytes);
  }

  Status ExpectPart(int peer, SlotPart part) override {
    LOCKSTEP_CHECK(open_ && part.offset + part.bytes <= slot_.size());
    return Receive(peer, MessageKind::kExchange, PartOf(peer, part));
  }

  Status PublishPart(int peer, SlotPart part) override {
    LOCKSTEP_CHECK(open_ && part.offset + part.bytes <= slot_.size());
    return Send(peer, MessageKind::kExchange, PartOf(rank(), part));
  }

  StatusOr<std::span<const std::byte>> Wait(int index) override {
    LOCKSTEP_CHECK(open_);
    if (index == rank()) return slot_;
    Peer& peer = peers_[index];
    LOCKSTEP_CHECK(peer.taken < peer.receives.size());
    Pending& next = peer.receives[peer.taken++];
    LOCKSTEP_RETURN_IF_ERROR(Await(index, &next, Patience::kStep));
    return next.buffer;
  }

  // MPI reads the slot until a send is complete, and moves it only when it is called.
  Status End() override {
    LOCKSTEP_CHECK(open_);
    for (int peer = 0; peer < size(); ++peer) {
      LOCKSTEP_RETURN_IF_ERROR(AwaitAll(peer, Patience::kStep));
    }
    open_ = false;
    return OkStatus();
  }

  Status SendReceive(int to, std::span<const std::byte> data, int from, std::span<std::byte> buffer,
                     Patience patience) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_ && to != rank() && from != rank() && to < size() && from < size());
    // MPI counts in int: longer messages travel in pieces, on both sides alike.
    constexpr size_t kPiece = size_t{1} << 30;
    bool more = true;
    while (more) {
      const size_t out = std::min(data.size(), kPiece), in = std::min(buffer.size(), kPiece);
      const bool sends = to >= 0, receives = from >= 0;
      if (receives)
        LOCKSTEP_RETURN_IF_ERROR(Receive(from, MessageKind::kMessage, buffer.first(in)));
      if (sends) LOCKSTEP_RETURN_IF_ERROR(Send(to, MessageKind::kMessage, data.first(out)));
      if (sends) LOCKSTEP_RETURN_IF_ERROR(AwaitAll(to, patience));
      if (receives) LOCKSTEP_RETURN_IF_ERROR(AwaitAll(from, patience));
      data = data.subspan(out);
      buffer = buffer.subspan(in);
      if (data.empty()) to = -1;
      if (buffer.empty()) from = -1;
      more = to >= 0 || from >= 0;
    }
    return OkStatus();
  }

  Status SumInAnyOrder(std::span<float> data) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_);
    ++exchange_;
    MPI_Request request = MPI_REQUEST_NULL;
    int code = MPI_Iallreduce(MPI_IN_PLACE, data.data(), static_cast<int>(data.size()), MPI_FLOAT,
                              MPI_SUM, communicator_, &request);
    MPI_Status status;
    if (code == MPI_SUCCESS) {
      LOCKSTEP_ASSIGN_OR_RETURN(code, Test(&request, &status, Patience::kStep, [&] {
                                  return PeerLostError(
                                      "MPI_Iallreduce of exchange %d has not ended on %s for %d "
                                      "ms: another rank is stuck, "
                                      "stopped or much slower; see --exchange-timeout-ms",
                                      exchange_, options_.names[rank()],
                                      options_.exchange_timeout_ms);
                                }));
    }
    return code == MPI_SUCCESS ? OkStatus() : Fail(MpiFailed("MPI_Iallreduce", code));
  }

  void Abort(const Status& reason) override { options_.lifeline->Abort(reason); }

 private:
  Status Health() {
    if (!failure_.ok()) return failure_;
    if (options_.lifeline->broken()) return Fail(options_.lifeline->reason());
    return OkStatus();
  }
  Status Fail(const Status& error) {
    if (failure_.ok()) failure_ = options_.lifeline->Overrule(error);
    // At exit another rank may be gone for good.
    g_skip_finalize.store(true);
    return failure_;
  }

  static int Tag(uint32_t sequence, MessageKind kind) {
    return static_cast<int>((sequence & kSequenceMask) << 1 |
                            (kind == MessageKind::kMessage ? 1 : 0));
  }

  Status Send(int to, MessageKind kind, std::span<const std::byte> data) {
    Peer& peer = peers_[to];
    peer.sends.push_back({.buffer = data, .active = true, .receives = false});
    const int code =
        MPI_Isend(data.data(), static_cast<int>(data.size()), MPI_BYTE, to,
                  Tag(peer.send_sequence++, kind), communicator_, &peer.sends.back().request);
    return code == MPI_SUCCESS ? OkStatus()
                               : Fail(Annotate(MpiFailed("MPI_Isend", code), options_.names[to]));
  }

  Status Receive(int from, MessageKind kind, std::span<std::byte> buffer) {
    Peer& peer = peers_[from];
    peer.receives.push_back({.buffer = buffer, .active = true, .receives = true});
    const int code =
        MPI_Irecv(buffer.data(), static_cast<int>(buffer.size()), MPI_BYTE, from,
                  Tag(peer.receive_sequence++, kind), communicator_, &peer.receives.back().request);
    return code == MPI_SUCCESS ? OkStatus()
                               : Fail(Annotate(MpiFailed("MPI_Irecv", code), options_.names[from]));
  }

  std::span<std::byte> PartOf(int owner, SlotPart part) const {
    return slots_.Of(owner, slot_.size()).subspan(part.offset, part.bytes);
  }

  // All that is under way between this rank and `index`.
  Status AwaitAll(int index, Patience patience) {
    Peer& peer = peers_[index];
    for (Pending& send : peer.sends) LOCKSTEP_RETURN_IF_ERROR(Await(index, &send, patience));
    for (Pending& receive : peer.receives) {
      LOCKSTEP_RETURN_IF_ERROR(Await(index, &receive, patience));
    }
    peer.sends.clear();
    peer.receives.clear();
    peer.taken = 0;
    return OkStatus();
  }

  // Until the request is done; MPI's code. MPI_Test also moves every other message of this process
  // on. `late` makes the error of the deadline.
  template <typename Late>
  StatusOr<int> Test(MPI_Request* request, MPI_Status* status, Patience patience,
                     const Late& late) {
    Backoff backoff(patience, options_.spin_us, options_.exchange_timeout_ms);
    while (true) {
      int done = 0;
      const int code = MPI_Test(request, &done, status);
      if (code != MPI_SUCCESS || done) return code;
      LOCKSTEP_RETURN_IF_ERROR(Health());
      const int64_t nap_us = backoff.Next();
      if (backoff.expired()) return Fail(late());
      if (nap_us > 0) (void)poll(nullptr, 0, kNapMs);
    }
  }

  Status Await(int peer, Pending* pending, Patience patience) {
    if (!pending->active) return OkStatus();
    MPI_Status status;
    LOCKSTEP_ASSIGN_OR_RETURN(
        const int code, Test(&pending->request, &status, patience, [&] {
          return PeerLostError(
              "%s %s for %d ms in exchange %d: it is stuck, stopped or much slower "
              "than %s; see --exchange-timeout-ms",
              options_.names[peer], pending->receives ? "sent nothing" : "took no data",
              options_.exchange_timeout_ms, exchange_, options_.names[rank()]);
        }));
    if (code != MPI_SUCCESS) {
      return Fail(Annotate(MpiFailed(pending->receives ? "a receive" : "a send", code),
                           options_.names[peer]));
    }
    pending->active = false;
    return pending->receives ? CheckLength(peer, *pending, status) : OkStatus();
  }

  Status CheckLength(int peer, const Pending& pending, const MPI_Status& status) {
    int count = -1;
    (void)MPI_Get_count(&status, MPI_BYTE, &count);
    if (count == static_cast<int>(pending.buffer.size())) return OkStatus();
    return Fail(PeerLostError(
        "%s sent %d bytes where %s expects %d in exchange %d: the ranks are out of step",
        options_.names[peer], count, options_.names[rank()], pending.buffer.size(), exchange_));
  }

  GroupOptions options_;
  GroupTraits traits_;
  MPI_Comm communicator_;
  Slots slots_;
  std::vector<Peer> peers_;
  Status failure_;
  uint64_t exchange_ = 0;
  bool open_ = false;
};

}  // namespace

StatusOr<std::unique_ptr<Group>> MakeMpiGroup(GroupOptions options) {
  LOCKSTEP_RETURN_IF_ERROR(StartMpi(options.rank, options.size));
  if (options.slot_bytes > INT_MAX)
    return UsageError("MPI cannot exchange slots of %d bytes", options.slot_bytes);
  MPI_Comm communicator;
  const int code = MPI_Comm_dup(MPI_COMM_WORLD, &communicator);
  if (code != MPI_SUCCESS) return MpiFailed("MPI_Comm_dup", code);
  (void)MPI_Comm_set_errhandler(communicator, MPI_ERRORS_RETURN);
  auto group = std::make_unique<MpiGroup>(std::move(options), communicator);
  if (!group->valid()) return InternalError("no memory for the exchange slots");
  return group;
}

Status MpiAllReduceSum(std::span<float> data) {
  if (data.size() > INT_MAX) return UsageError("MPI cannot add %d values", data.size());
  const int code = MPI_Allreduce(MPI_IN_PLACE, data.data(), static_cast<int>(data.size()),
                                 MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
  return code == MPI_SUCCESS ? OkStatus() : MpiFailed("MPI_Allreduce", code);
}

}  // namespace lockstep
