#include "transport/fabric.h"

#include <poll.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "runtime/base/bytes.h"
#include "runtime/base/log.h"
#include "transport/backends.h"

namespace lockstep {
namespace {

constexpr uint64_t kMagic = 0x31617461'646b736cULL;  // "lskdata1"
constexpr size_t kMaxPending = 64;
constexpr int64_t kHandshakeMs = 5'000;

using Nonce = std::array<std::byte, 16>;

// The acceptor speaks first.
struct Greeting {
  uint64_t magic = kMagic;
  Nonce nonce{};
};
static_assert(sizeof(Greeting) == 24);

struct Claim {
  uint32_t mesh = 0;
  uint32_t from = 0;
  uint32_t to = 0;
  Nonce nonce{};
  Proof proof{};
};
static_assert(sizeof(Claim) == 60);

bool EqualInConstantTime(const Proof& a, const Proof& b) {
  std::byte difference{0};
  for (size_t i = 0; i < a.size(); ++i) difference |= a[i] ^ b[i];
  return difference == std::byte{0};
}

// What a proof is over: who speaks ("c" connects, "a" accepts), to whom, and both challenges.
std::vector<std::byte> Statement(char speaker, const Claim& claim, const Nonce& challenge) {
  ByteWriter writer;
  writer.PutString("lockstep data link");
  writer.Put(speaker);
  writer.Put(claim.mesh);
  writer.Put(claim.from);
  writer.Put(claim.to);
  for (const std::byte value : challenge) writer.Put(value);
  for (const std::byte value : claim.nonce) writer.Put(value);
  return writer.bytes();
}

template <typename T>
std::span<std::byte> BytesOf(T* value) {
  return {reinterpret_cast<std::byte*>(value), sizeof(T)};
}

// A connection that has not proven anything yet.
struct Pending {
  UniqueFd socket;
  Nonce challenge{};
  Claim claim;
  size_t received = 0;
  Deadline deadline;
};

class MeshFabric final : public Fabric {
 public:
  explicit MeshFabric(FabricOptions options)
      : options_(std::move(options)), links_(options_.size) {}

  Status Open() {
    const size_t bytes = options_.window_bytes;
    const bool shared = options_.transport == "shm";
    LOCKSTEP_ASSIGN_OR_RETURN(window_, shared ? Window::Share(bytes) : Window::Allocate(bytes));
    if (options_.transport == "rdma") {
      LOCKSTEP_ASSIGN_OR_RETURN(rdma_, OpenRdmaDevices(options_.rdma_mode));
      LOCKSTEP_ASSIGN_OR_RETURN(options_.hosts, rdma_->Hosts(options_.hosts));
    }
    return Listen();
  }

  Status Listen() {
    if (options_.transport == "shm") {
      LOCKSTEP_ASSIGN_OR_RETURN(listener_, ListenLocal(&address_));
      return OkStatus();
    }
    if (options_.hosts.empty())
      return InternalError("no address to listen on for data connections");
    std::string host = options_.hosts.front();
    if (options_.hosts.size() > 1) {
      const bool v6 =
          std::any_of(options_.hosts.begin(), options_.hosts.end(),
                      [](const std::string& item) { return item.find(':') != std::string::npos; });
      host = v6 ? "::" : "0.0.0.0";
    }
    LOCKSTEP_ASSIGN_OR_RETURN(listener_, ListenTcp({host, 0}));
    const int port = LocalEndpoint(listener_.get()).port;
    std::vector<std::string> texts;
    for (const std::string& item : options_.hosts) texts.push_back(Endpoint{item, port}.Text());
    address_ = absl::StrJoin(texts, ",");
    return OkStatus();
  }

  const std::string& address() const override { return address_; }

  StatusOr<Mesh> Connect(const std::vector<std::string>& addresses, Deadline deadline) override {
    if (addresses.size() != static_cast<size_t>(options_.size)) {
      return InternalError("%d addresses for %d ranks", addresses.size(), options_.size);
    }
    for (int peer = 0; peer < options_.rank; ++peer) {
      LOCKSTEP_ASSIGN_OR_RETURN(links_[peer], ConnectTo(peer, addresses[peer], deadline));
    }
    LOCKSTEP_RETURN_IF_ERROR(AcceptAbove(deadline));
    listener_.Reset();
    return Mesh{std::move(window_), std::move(links_)};
  }

 private:
  std::string Name(int rank) const {
    if (static_cast<size_t>(rank) < options_.names.size()) return options_.names[rank];
    return absl::StrFormat("rank %d", rank);
  }

  Status Interrupted() const { return options_.interrupted ? options_.interrupted() : OkStatus(); }

  // --- the connecting side ---

  StatusOr<std::unique_ptr<Link>> ConnectTo(int peer, const std::string& address,
                                            Deadline deadline) {
    const std::vector<std::string> candidates = absl::StrSplit(address, ',');
    Status last = InternalError("no address");
    for (int64_t patience_ms = 1'000;; patience_ms = std::min<int64_t>(patience_ms * 2, 10'000)) {
      for (const std::string& candidate : candidates) {
        LOCKSTEP_RETURN_IF_ERROR(Interrupted());
        if (deadline.Passed()) {
          return PeerLostError("%s cannot be reached for data at %s: %s", Name(peer), address,
                               MessageOf(last));
        }
        const Deadline attempt = Deadline::After(std::min(deadline.RemainingMs(), patience_ms));
        StatusOr<std::unique_ptr<Link>> link = TryCandidate(peer, candidate, attempt);
        // What the two ends cannot agree on stays so.
        if (link.ok() || KindOf(link.status()) == ErrorKind::kUsage) return link;
        last = link.status();
      }
      (void)poll(nullptr, 0, 20);
    }
  }

  StatusOr<std::unique_ptr<Link>> TryCandidate(int peer, const std::string& candidate,
                                               Deadline deadline) {
    UniqueFd socket;
    if (options_.transport == "shm") {
      LOCKSTEP_ASSIGN_OR_RETURN(socket, ConnectLocal(candidate));
    } else {
      LOCKSTEP_ASSIGN_OR_RETURN(const Endpoint endpoint, ParseEndpoint(candidate));
      LOCKSTEP_ASSIGN_OR_RETURN(socket, ConnectTcp(endpoint, deadline));
    }
    Greeting greeting;
    LOCKSTEP_RETURN_IF_ERROR(ReceiveAll(socket.get(), BytesOf(&greeting), deadline));
    if (greeting.magic != kMagic)
      return PeerLostError("something else than lockstep answers there");
    Claim claim;
    claim.mesh = options_.mesh;
    claim.from = static_cast<uint32_t>(options_.rank);
    claim.to = static_cast<uint32_t>(peer);
    claim.nonce = options_.nonce();
    claim.proof = options_.sign(Statement('c', claim, greeting.nonce));
    LOCKSTEP_RETURN_IF_ERROR(SendAll(socket.get(), BytesOf(&claim), deadline));
    Proof answer{};
    LOCKSTEP_RETURN_IF_ERROR(ReceiveAll(socket.get(), BytesOf(&answer), deadline));
    if (!EqualInConstantTime(answer, options_.sign(Statement('a', claim, greeting.nonce)))) {
      return PeerLostError("the process there is not of this session");
    }
    return MakeLink(std::move(socket), true);
  }

  // Both ends are in here at the same time.
  StatusOr<std::unique_ptr<Link>> MakeLink(UniqueFd socket, bool connected) {
    const Deadline deadline = Deadline::After(kHandshakeMs);
    if (options_.transport == "shm") {
      return MakeShmLink(std::move(socket), window_, connected, deadline);
    }
    TuneForData(socket.get());
    if (rdma_ != nullptr) return rdma_->MakeLink(std::move(socket), window_.bytes(), deadline);
    return MakeTcpLink(std::move(socket), window_.bytes());
  }

  // --- the accepting side ---

  Status AcceptAbove(Deadline deadline) {
    std::vector<Pending> pending;
    while (true) {
      int missing = -1;
      for (int peer = options_.size - 1; peer > options_.rank; --peer) {
        if (links_[peer] == nullptr) missing = peer;
      }
      if (missing < 0) return OkStatus();
      LOCKSTEP_RETURN_IF_ERROR(refusal_);
      LOCKSTEP_RETURN_IF_ERROR(Interrupted());
      if (deadline.Passed()) {
        return PeerLostError("%s did not open its data connection to %s at %s in time",
                             Name(missing), Name(options_.rank), address_);
      }
      std::vector<pollfd> entries{{listener_.get(), POLLIN, 0}};
      for (const Pending& item : pending) entries.push_back({item.socket.get(), POLLIN, 0});
      (void)poll(entries.data(), entries.size(), 50);
      AcceptNew(&pending);
      for (Pending& item : pending) {
        if (!Advance(&item)) item.socket.Reset();
      }
      std::erase_if(pending, [](const Pending& item) { return !item.socket.valid(); });
    }
  }

  void AcceptNew(std::vector<Pending>* pending) {
    while (true) {
      UniqueFd socket = AcceptPending(listener_.get());
      if (!socket.valid()) return;
      // The oldest silent connection makes room, so that strangers cannot shut the members out.
      if (pending->size() >= kMaxPending) pending->erase(pending->begin());
      Pending item;
      item.socket = std::move(socket);
      item.challenge = options_.nonce();
      item.deadline = Deadline::After(kHandshakeMs);
      Greeting greeting;
      greeting.nonce = item.challenge;
      const StatusOr<size_t> sent = SendSome(item.socket.get(), BytesOf(&greeting));
      if (sent.ok() && *sent == sizeof(greeting)) pending->push_back(std::move(item));
    }
  }

  // Reads on; false when the connection is to be dropped. A proven connection becomes a link.
  bool Advance(Pending* item) {
    const StatusOr<size_t> received =
        ReceiveSome(item->socket.get(), BytesOf(&item->claim).subspan(item->received));
    if (!received.ok()) return false;
    item->received += *received;
    if (item->received < sizeof(Claim)) return !item->deadline.Passed();
    const Claim& claim = item->claim;
    const bool expected =
        claim.mesh == options_.mesh && claim.to == static_cast<uint32_t>(options_.rank) &&
        claim.from > claim.to && claim.from < static_cast<uint32_t>(options_.size);
    if (!expected ||
        !EqualInConstantTime(claim.proof, options_.sign(Statement('c', claim, item->challenge)))) {
      log::Warning("refused a data connection from %s: it does not belong to this session",
                   RemoteEndpoint(item->socket.get()).Text());
      return false;
    }
    Proof answer = options_.sign(Statement('a', claim, item->challenge));
    const Deadline deadline = Deadline::After(kHandshakeMs);
    if (!SendAll(item->socket.get(), BytesOf(&answer), deadline).ok()) return false;
    StatusOr<std::unique_ptr<Link>> link = MakeLink(std::move(item->socket), false);
    if (!link.ok() && KindOf(link.status()) == ErrorKind::kUsage) refusal_ = link.status();
    // A peer that gave up on an earlier attempt comes again; its latest connection counts.
    if (link.ok()) links_[claim.from] = std::move(*link);
    return false;
  }

  FabricOptions options_;
  UniqueFd listener_;
  std::string address_;
  Window window_;
  std::unique_ptr<RdmaDevices> rdma_;  // of the transport rdma
  Status refusal_;                     // what an accepted member and this rank cannot agree on
  std::vector<std::unique_ptr<Link>> links_;
};

}  // namespace

const char* FindTransport(std::string_view name) {
  for (const char* transport : {"tcp", "shm", "rdma"}) {
    if (name == transport) return transport;
  }
  return nullptr;
}

StatusOr<std::unique_ptr<Fabric>> OpenFabric(FabricOptions options) {
  if (FindTransport(options.transport) == nullptr) {
    return InternalError("there is no transport '%s'", options.transport);
  }
  auto fabric = std::make_unique<MeshFabric>(std::move(options));
  LOCKSTEP_RETURN_IF_ERROR(fabric->Open());
  return fabric;
}

}  // namespace lockstep
