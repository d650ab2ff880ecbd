// Direct exchange: every rank sends its slot to every other over one link per pair. The links copy
// (a socket buffer, a ring), so one set of slots is enough: a slot is free again when its bytes
// left this process.
#include <algorithm>
#include <cstring>
#include <utility>

#include "collectives/backends.h"
#include "collectives/message.h"
#include "collectives/wait.h"
#include "runtime/base/check.h"

namespace lockstep {
namespace {

// Polls of the awaited link between two looks at the others, whose sockets may be full.
constexpr uint32_t kLooksPerRound = 8;

struct Peer {
  std::unique_ptr<Link> link;
  LinkProgress done;
  LinkProgress posted;
  uint32_t send_sequence = 0;
  uint32_t receive_sequence = 0;
  // One message per direction and peer is under way at a time.
  MessageHeader send_header;
  MessageHeader receive_header;
  MessageHeader expected;
  bool header_checked = true;

  bool sending() const { return done.sends < posted.sends; }
  bool receiving() const { return done.receives < posted.receives; }
  bool header_arrived() const { return done.receives + 1 >= posted.receives; }
};

class LinkGroup final : public Group {
 public:
  LinkGroup(GroupOptions options, const char* name, std::vector<std::unique_ptr<Link>> links)
      : Group(options.rank, options.size),
        options_(std::move(options)),
        traits_{.name = name, .slot_bytes = options_.slot_bytes, .sums_in_rank_order = true},
        slots_(size(), options_.slot_bytes),
        peers_(size()) {
    for (int peer = 0; peer < size(); ++peer) peers_[peer].link = std::move(links[peer]);
  }

  bool valid() const { return slots_.valid(); }
  const GroupTraits& traits() const override { return traits_; }

  StatusOr<std::span<std::byte>> Begin(size_t bytes) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_ && bytes <= traits_.slot_bytes);
    open_ = true;
    published_ = false;
    bytes_ = bytes;
    return slots_.Of(rank(), bytes);
  }

  Status Publish() override {
    LOCKSTEP_CHECK(open_ && !published_);
    published_ = true;
    ++exchange_;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) continue;
      LOCKSTEP_RETURN_IF_ERROR(PostReceive(peer, MessageKind::kExchange, slots_.Of(peer, bytes_)));
      LOCKSTEP_RETURN_IF_ERROR(PostSend(peer, MessageKind::kExchange, slots_.Of(rank(), bytes_)));
      LOCKSTEP_RETURN_IF_ERROR(PollPeer(peer));
    }
    return OkStatus();
  }

  StatusOr<std::span<const std::byte>> Wait(int peer) override {
    LOCKSTEP_CHECK(open_ && published_);
    if (peer != rank()) {
      LOCKSTEP_RETURN_IF_ERROR(Await(peer, Awaited::kReceive, Patience::kStep));
    }
    return slots_.Of(peer, bytes_);
  }

  Status End() override {
    LOCKSTEP_CHECK(open_ && published_);
    open_ = false;
    for (int peer = 0; peer < size(); ++peer) {
      if (peer == rank()) continue;
      // A slot that nobody waited for must still be read before the next message.
      LOCKSTEP_RETURN_IF_ERROR(Await(peer, Awaited::kReceive, Patience::kStep));
      LOCKSTEP_RETURN_IF_ERROR(Await(peer, Awaited::kSend, Patience::kStep));
    }
    return OkStatus();
  }

  Status SendReceive(int to, std::span<const std::byte> data, int from, std::span<std::byte> buffer,
                     Patience patience) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_ && to != rank() && from != rank() && to < size() && from < size());
    if (from >= 0) LOCKSTEP_RETURN_IF_ERROR(PostReceive(from, MessageKind::kMessage, buffer));
    if (to >= 0) LOCKSTEP_RETURN_IF_ERROR(PostSend(to, MessageKind::kMessage, data));
    if (to >= 0) LOCKSTEP_RETURN_IF_ERROR(Await(to, Awaited::kSend, patience));
    if (from >= 0) LOCKSTEP_RETURN_IF_ERROR(Await(from, Awaited::kReceive, patience));
    return OkStatus();
  }

  void Abort(const Status& reason) override { options_.lifeline->Abort(reason); }

 private:
  enum class Awaited { kSend, kReceive };

  // What ended this group, if anything did.
  Status Health() {
    if (!failure_.ok()) return failure_;
    if (options_.lifeline->broken()) return failure_ = options_.lifeline->reason();
    return OkStatus();
  }

  Status Fail(const Status& data_error) {
    if (failure_.ok()) failure_ = options_.lifeline->Overrule(data_error);
    return failure_;
  }
  Status FailPeer(int peer, const Status& link_error) {
    return Fail(PeerLostError("%s %s", options_.names[peer], MessageOf(link_error)));
  }

  Status PostSend(int to, MessageKind kind, std::span<const std::byte> data) {
    Peer& peer = peers_[to];
    peer.send_header = MessageHeader::Make(options_.epoch, peer.send_sequence++, kind, data.size());
    peer.posted.sends += 2;
    Status posted = peer.link->PostSend(std::as_const(peer.send_header).bytes());
    if (posted.ok()) posted = peer.link->PostSend(data);
    return posted.ok() ? posted : FailPeer(to, posted);
  }

  Status PostReceive(int from, MessageKind kind, std::span<std::byte> buffer) {
    Peer& peer = peers_[from];
    peer.expected =
        MessageHeader::Make(options_.epoch, peer.receive_sequence++, kind, buffer.size());
    peer.header_checked = false;
    peer.posted.receives += 2;
    Status posted = peer.link->PostReceive(peer.receive_header.bytes());
    if (posted.ok()) posted = peer.link->PostReceive(buffer);
    return posted.ok() ? posted : FailPeer(from, posted);
  }

  // Moves what can be moved; a header is checked before its payload is waited for, because a
  // payload of another length might never be complete.
  Status PollPeer(int index) {
    Peer& peer = peers_[index];
    const StatusOr<LinkProgress> progress = peer.link->Poll();
    if (!progress.ok()) return FailPeer(index, progress.status());
    peer.done = *progress;
    if (peer.header_checked || !peer.header_arrived()) return OkStatus();
    peer.header_checked = true;
    const Status checked = CheckHeader(peer.receive_header, peer.expected, options_.names[index],
                                       options_.names[rank()]);
    return checked.ok() ? checked : Fail(checked);
  }

  // Keeps the other links moving: a peer that this rank does not wait for may need its data to go
  // on.
  Status PollOthers(int awaited, bool* sending) {
    *sending = false;
    for (int index = 0; index < size(); ++index) {
      const Peer& peer = peers_[index];
      if (index == awaited || index == rank() || !(peer.sending() || peer.receiving())) continue;
      LOCKSTEP_RETURN_IF_ERROR(PollPeer(index));
      *sending |= peer.sending();
    }
    return OkStatus();
  }

  Status Await(int index, Awaited what, Patience patience) {
    Peer& peer = peers_[index];
    const auto done = [&] { return what == Awaited::kSend ? !peer.sending() : !peer.receiving(); };
    if (done()) return OkStatus();
    Backoff backoff(patience, options_.spin_us, options_.exchange_timeout_ms);
    bool others_sending = true;
    for (uint32_t look = 0;; ++look) {
      LOCKSTEP_RETURN_IF_ERROR(PollPeer(index));
      if (done()) return OkStatus();
      if (look % kLooksPerRound == 0 || others_sending) {
        LOCKSTEP_RETURN_IF_ERROR(PollOthers(index, &others_sending));
      }
      LOCKSTEP_RETURN_IF_ERROR(Health());
      const int64_t nap_us = backoff.Next();
      if (backoff.expired()) return Fail(TimedOut(index, what));
      if (nap_us > 0) {
        LOCKSTEP_RETURN_IF_ERROR(PollOthers(index, &others_sending));
        peer.link->WaitReadable(others_sending ? std::min<int64_t>(nap_us, 1000) : nap_us);
      }
    }
  }

  Status TimedOut(int index, Awaited what) const {
    return PeerLostError(
        "%s %s for %d ms in exchange %d, message %d, although it is connected: it is stuck, "
        "stopped or much slower "
        "than %s; see --exchange-timeout-ms",
        options_.names[index], what == Awaited::kSend ? "took no data" : "sent nothing",
        options_.exchange_timeout_ms, exchange_, peers_[index].expected.sequence,
        options_.names[rank()]);
  }

  GroupOptions options_;
  GroupTraits traits_;
  Slots slots_;
  std::vector<Peer> peers_;
  Status failure_;
  uint64_t exchange_ = 0;
  size_t bytes_ = 0;
  bool open_ = false;
  bool published_ = false;
};

}  // namespace

StatusOr<std::unique_ptr<Group>> MakeLinkGroup(GroupOptions options, const char* name,
                                               std::vector<std::unique_ptr<Link>> links) {
  if (links.size() != static_cast<size_t>(options.size) || options.names.size() != links.size()) {
    return InternalError("a group of %d ranks needs as many links and names", options.size);
  }
  const size_t slot_bytes = options.slot_bytes;
  auto group = std::make_unique<LinkGroup>(std::move(options), name, std::move(links));
  if (!group->valid()) {
    return InternalError("no memory for the exchange slots of %d bytes per rank", slot_bytes);
  }
  return group;
}

}  // namespace lockstep
