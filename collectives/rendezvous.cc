#include "collectives/rendezvous.h"

#include <poll.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_join.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

constexpr size_t kMostVisitors = 64;
constexpr int64_t kHandshakeMs = 5'000;
constexpr int64_t kLingerMs = 2'000;

template <typename T>
std::span<std::byte> BytesOf(T* value) {
  return {reinterpret_cast<std::byte*>(value), sizeof(T)};
}

// A connection to rank 0 that has not proven anything yet.
struct Visitor {
  UniqueFd socket;
  Challenge challenge{};
  std::vector<std::byte> bytes = std::vector<std::byte>(sizeof(SealedHeader));
  size_t received = 0;
  Deadline deadline;
};

// A rank that came; its handshake's challenges, for the answer.
struct Guest {
  UniqueFd socket;
  Challenge ours{};
  Challenge theirs{};
};

class Gatherer {
 public:
  Gatherer(UniqueFd listener, const RendezvousOptions& options)
      : listener_(std::move(listener)),
        options_(options),
        size_(options.self.size),
        guests_(size_),
        members_(size_) {
    members_[0] = {0, options.self.pid, options.self.host, options.self.machine, ""};
  }

  StatusOr<Joined> Run() {
    Deadline deadline = Deadline::After(options_.start_timeout_ms);
    while (missing_ > 0) {
      if (deadline.Passed()) return refusal_.ok() ? RefuseAll(Missing()) : refusal_;
      WaitForNews(std::min<int64_t>(deadline.RemainingMs(), 200));
      AcceptVisitors();
      for (Visitor& visitor : visitors_) {
        const Status heard = Listen(&visitor);
        if (heard.ok() || !refusal_.ok()) continue;
        refusal_ = RefuseAll(heard);
        // Those on their way are told as well, instead of finding nobody.
        deadline = Deadline::After(std::min(deadline.RemainingMs(), kLingerMs));
      }
      std::erase_if(visitors_, [](const Visitor& item) { return !item.socket.valid(); });
      if (refusal_.ok()) LOCKSTEP_RETURN_IF_ERROR(CheckGuests());
    }
    if (!refusal_.ok()) return refusal_;
    return Welcome();
  }

 private:
  std::string Name(uint32_t rank) const {
    return NameOf(rank, members_[rank].host, members_[rank].pid);
  }

  void WaitForNews(int64_t timeout_ms) {
    std::vector<pollfd> entries{{listener_.get(), POLLIN, 0}};
    for (const Visitor& visitor : visitors_) entries.push_back({visitor.socket.get(), POLLIN, 0});
    for (const Guest& guest : guests_) {
      if (guest.socket.valid()) entries.push_back({guest.socket.get(), POLLIN, 0});
    }
    (void)poll(entries.data(), entries.size(), static_cast<int>(timeout_ms));
  }

  void AcceptVisitors() {
    while (true) {
      Visitor visitor;
      visitor.socket = AcceptPending(listener_.get());
      if (!visitor.socket.valid()) return;
      // The oldest makes room, so that silent strangers cannot shut the ranks out.
      if (visitors_.size() >= kMostVisitors) visitors_.erase(visitors_.begin());
      TuneForControl(visitor.socket.get());
      visitor.deadline = Deadline::After(kHandshakeMs);
      visitor.challenge = RandomChallenge();
      Greeting greeting;
      greeting.challenge = visitor.challenge;
      const StatusOr<size_t> sent = SendSome(visitor.socket.get(), BytesOf(&greeting));
      if (sent.ok() && *sent == sizeof(greeting)) visitors_.push_back(std::move(visitor));
    }
  }

  // Reads on. A visitor that cannot be a rank is dropped (its socket becomes invalid); an error
  // means that a rank with the right secret cannot take part, and ends the start for all.
  Status Listen(Visitor* visitor) {
    while (true) {
      const std::span<std::byte> rest = std::span(visitor->bytes).subspan(visitor->received);
      const StatusOr<size_t> received =
          rest.empty() ? size_t{0} : ReceiveSome(visitor->socket.get(), rest);
      if (!received.ok()) return Drop(visitor, "");
      visitor->received += *received;
      if (visitor->received < visitor->bytes.size()) {
        if (visitor->deadline.Passed()) return Drop(visitor, "said nothing for 5 s");
        return OkStatus();
      }
      const StatusOr<SealedHeader> header = ParseSealedHeader(visitor->bytes);
      if (!header.ok()) return Drop(visitor, MessageOf(header.status()));
      if (visitor->bytes.size() == sizeof(SealedHeader) + header->body_bytes)
        return Admit(visitor, *header);
      visitor->bytes.resize(sizeof(SealedHeader) + header->body_bytes);
    }
  }

  Status Drop(Visitor* visitor, const std::string& why) {
    if (!why.empty()) {
      const std::string text = absl::StrFormat("a connection from %s %s",
                                               RemoteEndpoint(visitor->socket.get()).Text(), why);
      log::Warning("dropped %s", text);
      if (dropped_.size() < 4) dropped_.push_back(text);
    }
    visitor->socket.Reset();
    return OkStatus();
  }

  Status Admit(Visitor* visitor, const SealedHeader& header) {
    const std::span<const std::byte> body = std::span(visitor->bytes).subspan(sizeof(SealedHeader));
    if (!ProofHolds(options_.secret, "client", header, visitor->challenge, body)) {
      Guest stranger{std::move(visitor->socket), visitor->challenge, header.challenge};
      SendRefusal(stranger, UsageError("the cluster secret is wrong"));
      visitor->socket = std::move(stranger.socket);
      return Drop(visitor, "was refused: it does not hold the same cluster secret (--secret-file)");
    }
    const StatusOr<Hello> hello = ParseHello(body);
    if (!hello.ok()) return Drop(visitor, MessageOf(hello.status()));
    Guest guest{std::move(visitor->socket), visitor->challenge, header.challenge};
    const Status accepted = refusal_.ok() ? Check(*hello) : refusal_;
    if (!accepted.ok()) {
      SendRefusal(guest, accepted);
      missing_ -= missing_ > 0 ? 1 : 0;
      return accepted;
    }
    members_[hello->rank] = {hello->rank, hello->pid, hello->host, hello->machine,
                             RemoteEndpoint(guest.socket.get()).host};
    guests_[hello->rank] = std::move(guest);
    missing_ -= missing_ > 0 ? 1 : 0;
    return OkStatus();
  }

  Status Check(const Hello& hello) const {
    const std::string name = NameOf(hello.rank, hello.host, hello.pid);
    if (hello.size != size_) {
      return UsageError(
          "%s was started for %d ranks, %s for %d; start all with the same number of ranks", name,
          hello.size, Name(0), size_);
    }
    if (hello.rank == 0 || hello.rank >= size_) {
      return UsageError(
          "%s came to %s, which waits for ranks 1 to %d; give every process its own rank", name,
          Name(0), size_ - 1);
    }
    if (guests_[hello.rank].socket.valid()) {
      return UsageError(
          "rank %d was started twice: as %s and as %s; give every process its own rank", hello.rank,
          Name(hello.rank), name);
    }
    return CompareSettings(options_.self.settings, Name(0), hello.settings, name);
  }

  // A rank that came and went ends the start.
  Status CheckGuests() {
    for (uint32_t rank = 1; rank < size_; ++rank) {
      if (!guests_[rank].socket.valid()) continue;
      std::byte unexpected;
      const StatusOr<size_t> received = ReceiveSome(guests_[rank].socket.get(), {&unexpected, 1});
      if (received.ok() && *received == 0) continue;
      guests_[rank].socket.Reset();
      return RefuseAll(PeerLostError(
          "%s closed its connection during the start: it crashed or was stopped", Name(rank)));
    }
    return OkStatus();
  }

  Status Missing() const {
    std::vector<std::string> names;
    for (uint32_t rank = 1; rank < size_; ++rank) {
      if (!guests_[rank].socket.valid()) names.push_back(std::to_string(rank));
    }
    const std::string where = LocalEndpoint(listener_.get()).Text();
    const std::string who = absl::StrFormat(
        "rank%s %s of %d did not come to rank 0 at %s within %d ms", names.size() > 1 ? "s" : "",
        absl::StrJoin(names, ", "), size_, where, options_.start_timeout_ms);
    if (!dropped_.empty()) return UsageError("%s; %s", who, absl::StrJoin(dropped_, "; "));
    return PeerLostError(
        "%s; check that it was started, that it can reach this address, and --start-timeout-ms",
        who);
  }

  void SendRefusal(const Guest& guest, const Status& reason) {
    Verdict verdict;
    verdict.kind = KindOf(reason);
    verdict.message = MessageOf(reason);
    (void)SendVerdict(guest, verdict);
  }

  Status SendVerdict(const Guest& guest, const Verdict& verdict) {
    const std::vector<std::byte> message =
        Seal(options_.secret, "server", guest.ours, guest.theirs, EncodeVerdict(verdict));
    return SendAll(guest.socket.get(), message, Deadline::After(1'000));
  }

  Status RefuseAll(const Status& reason) {
    for (const Guest& guest : guests_) {
      if (guest.socket.valid()) SendRefusal(guest, reason);
    }
    return reason;
  }

  StatusOr<Joined> Welcome() {
    Joined joined;
    joined.session = RandomChallenge();
    Verdict verdict;
    verdict.accepted = true;
    verdict.session = joined.session;
    verdict.members = members_;
    for (uint32_t rank = 1; rank < size_; ++rank) {
      const Status sent = SendVerdict(guests_[rank], verdict);
      if (!sent.ok()) return PeerLostError("%s %s during the start", Name(rank), MessageOf(sent));
    }
    joined.members = std::move(members_);
    for (Guest& guest : guests_) joined.connections.push_back(std::move(guest.socket));
    return joined;
  }

  UniqueFd listener_;
  const RendezvousOptions& options_;
  uint32_t size_;
  uint32_t missing_ = options_.self.size - 1;
  Status refusal_;  // why nobody is let in any more
  std::vector<Visitor> visitors_;
  std::vector<Guest> guests_;
  std::vector<Member> members_;
  std::vector<std::string> dropped_;
};

// --- the other ranks ---

Status LostRankZero(const std::string& where, const Status& cause) {
  return PeerLostError("rank 0 at %s %s while the ranks were gathering; its own output says why",
                       where, MessageOf(cause));
}

// One conversation with whoever listens at the other end. *final tells an answer of rank 0 from a
// failure to find it.
StatusOr<Joined> TryJoin(UniqueFd socket, const std::string& where,
                         const RendezvousOptions& options, Deadline deadline, bool* final) {
  TuneForControl(socket.get());
  Greeting greeting;
  const Deadline attempt = Deadline::After(std::min(deadline.RemainingMs(), kHandshakeMs));
  LOCKSTEP_RETURN_IF_ERROR(ReceiveAll(socket.get(), BytesOf(&greeting), attempt));
  LOCKSTEP_RETURN_IF_ERROR(CheckMagic(greeting.magic, greeting.version));
  *final = true;
  if (options.secret.empty() && !IsLoopback(RemoteEndpoint(socket.get()).host)) {
    return UsageError(
        "rank 0 at %s is on another machine: give all ranks the same secret with --secret-file",
        where);
  }
  const Challenge challenge = RandomChallenge();
  const std::vector<std::byte> hello =
      Seal(options.secret, "client", challenge, greeting.challenge, EncodeHello(options.self));
  const Status sent = SendAll(socket.get(), hello, attempt);
  if (!sent.ok()) return LostRankZero(where, sent);
  // Rank 0 answers when all ranks are there, or says at its own deadline who is missing.
  const Deadline answer = Deadline::After(deadline.RemainingMs() + 2'000);
  std::vector<std::byte> bytes(sizeof(SealedHeader));
  Status received = ReceiveAll(socket.get(), bytes, answer);
  if (!received.ok()) return LostRankZero(where, received);
  LOCKSTEP_ASSIGN_OR_RETURN(const SealedHeader header, ParseSealedHeader(bytes));
  std::vector<std::byte> body(header.body_bytes);
  received = ReceiveAll(socket.get(), body, answer);
  if (!received.ok()) return LostRankZero(where, received);
  // The challenge of the answer is the greeting's: rank 0 has one per connection.
  if (header.challenge != greeting.challenge ||
      !ProofHolds(options.secret, "server", header, challenge, body)) {
    return UsageError(
        "rank 0 at %s holds another cluster secret than this rank %d: give all ranks the same "
        "--secret-file",
        where, options.self.rank);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(Verdict verdict, ParseVerdict(body));
  if (!verdict.accepted) return MakeError(verdict.kind, verdict.message);
  if (verdict.members.size() != options.self.size)
    return InternalError("rank 0 at %s counts other ranks", where);
  verdict.members[0].address = RemoteEndpoint(socket.get()).host;
  Joined joined;
  joined.session = verdict.session;
  joined.members = std::move(verdict.members);
  joined.connections.push_back(std::move(socket));
  return joined;
}

}  // namespace

std::string NameOf(uint32_t rank, const std::string& host, uint32_t pid) {
  return absl::StrFormat("rank %d (%s, pid %d)", rank, host, pid);
}

StatusOr<Joined> GatherRanks(UniqueFd listener, const RendezvousOptions& options) {
  return Gatherer(std::move(listener), options).Run();
}

StatusOr<Joined> JoinRankZero(const std::vector<Endpoint>& candidates,
                              const RendezvousOptions& options) {
  const Deadline deadline = Deadline::After(options.start_timeout_ms);
  std::string where;
  for (const Endpoint& candidate : candidates)
    where += (where.empty() ? "" : ", ") + candidate.Text();
  Status last = InternalError("no address given");
  do {
    for (const Endpoint& candidate : candidates) {
      StatusOr<UniqueFd> socket =
          ConnectTcp(candidate, Deadline::After(std::min<int64_t>(deadline.RemainingMs(), 2'000)));
      if (!socket.ok()) {
        last = socket.status();
        continue;
      }
      bool final = false;
      StatusOr<Joined> joined =
          TryJoin(std::move(*socket), candidate.Text(), options, deadline, &final);
      if (joined.ok() || final) return joined;
      last = joined.status();
    }
    (void)poll(nullptr, 0, 50);
  } while (!deadline.Passed());
  return MakeError(
      KindOf(last) == ErrorKind::kUsage ? ErrorKind::kUsage : ErrorKind::kPeerLost,
      absl::StrFormat("rank %d did not find rank 0 at %s within %d ms (%s); check that rank 0 was "
                      "started there, and --rendezvous",
                      options.self.rank, where, options.start_timeout_ms, MessageOf(last)));
}

}  // namespace lockstep
