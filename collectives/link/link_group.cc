// Exchanges over one link per pair of ranks: a part of a slot is a put into the window.
//
// The window has two halves, and the exchanges use them in turn. Nothing is acknowledged: a peer
// whose part of exchange k + 1 is here has ended exchange k, so it has read this rank's slot of k,
// and exchange k + 2 may overwrite that half.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "collectives/backends.h"
#include "collectives/wait.h"
#include "runtime/base/check.h"
#include "runtime/base/digest.h"

namespace lockstep {
namespace {

// Polls of the awaited link between two looks at the others, whose sockets may be full.
constexpr uint32_t kLooksPerRound = 8;
static_assert(2 * kMostParts <= kPutsAhead, "a peer may be one exchange ahead");

using Counter = uint64_t LinkProgress::*;

struct Peer {
  std::unique_ptr<Link> link;
  LinkProgress done;
  LinkProgress posted;
  // Of the open exchange: what was expected, and how much of it was waited for.
  std::array<SlotPart, kMostParts> parts;
  size_t expected = 0;
  size_t taken = 0;
  // Puts that read the half of that parity, counted from the start.
  uint64_t puts_of_half[2] = {0, 0};

  bool pending(Counter counter) const { return done.*counter < posted.*counter; }
  bool sending() const { return pending(&LinkProgress::sends) || pending(&LinkProgress::puts); }
  bool receiving() const {
    return pending(&LinkProgress::receives) || pending(&LinkProgress::arrivals);
  }
};

// One line of distance, so that the halves do not share cache sets evenly.
size_t HalfBytes(size_t slot_bytes) { return (slot_bytes + 127) / 64 * 64; }

const Link& FirstLink(const Mesh& mesh) {
  return mesh.links[0] != nullptr ? *mesh.links[0] : *mesh.links[1];
}

class LinkGroup final : public Group {
 public:
  LinkGroup(GroupOptions options, const char* name, Mesh mesh)
      : Group(options.rank, options.size),
        options_(std::move(options)),
        traits_{.name = name,
                .slot_bytes = options_.slot_bytes,
                .reads_in_place = size() > 1 && !FirstLink(mesh).traits().put_copies,
                .slots_in_parts = true,
                .any_order_is_fixed = true},
        window_(std::move(mesh.window)),
        peers_(size()) {
    for (int peer = 0; peer < size(); ++peer) peers_[peer].link = std::move(mesh.links[peer]);
  }

  const GroupTraits& traits() const override { return traits_; }

  StatusOr<std::span<std::byte>> Begin(size_t bytes) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_ && bytes <= traits_.slot_bytes);
    open_ = true;
    ++exchange_;
    for (int index = 0; index < size(); ++index) {
      if (index == rank()) continue;
      Peer& peer = peers_[index];
      peer.expected = peer.taken = 0;
      const uint64_t puts = peer.puts_of_half[exchange_ % 2];
      LOCKSTEP_RETURN_IF_ERROR(Await(index, &LinkProgress::puts, puts, Patience::kStep));
    }
    return slot_ = window_.bytes().subspan(half(), bytes);
  }

  Status ExpectPart(int index, SlotPart part) override {
    Peer& peer = peers_[index];
    LOCKSTEP_CHECK(open_ && Inside(part) && peer.expected < kMostParts);
    peer.parts[peer.expected++] = part;
    ++peer.posted.arrivals;
    const Status expecting = peer.link->Expect(half() + part.offset, part.bytes);
    return expecting.ok() ? expecting : FailPeer(index, expecting);
  }

  Status PublishPart(int index, SlotPart part) override {
    Peer& peer = peers_[index];
    LOCKSTEP_CHECK(open_ && Inside(part));
    peer.puts_of_half[exchange_ % 2] = ++peer.posted.puts;
    const auto data = slot_.subspan(part.offset, part.bytes);
    const Status put = peer.link->Put(half() + part.offset, part.bytes, Tag(exchange_, data));
    return put.ok() ? put : FailPeer(index, put);
  }

  StatusOr<std::span<const std::byte>> Wait(int index) override {
    LOCKSTEP_CHECK(open_);
    if (index == rank()) return slot_;
    Peer& peer = peers_[index];
    LOCKSTEP_CHECK(peer.taken < peer.expected);
    const SlotPart part = peer.parts[peer.taken];
    const uint64_t number = peer.posted.arrivals - peer.expected + peer.taken++;
    LOCKSTEP_RETURN_IF_ERROR(Await(index, &LinkProgress::arrivals, number + 1, Patience::kStep));
    const auto data = peer.link->view().subspan(half() + part.offset, part.bytes);
    LOCKSTEP_RETURN_IF_ERROR(CheckTag(index, peer.link->put_tag(number), Tag(exchange_, data)));
    return data;
  }

  Status End() override {
    LOCKSTEP_CHECK(open_);
    for (int index = 0; index < size(); ++index) {
      if (index == rank()) continue;
      Peer& peer = peers_[index];
      while (peer.taken < peer.expected) LOCKSTEP_RETURN_IF_ERROR(Wait(index).status());
      if (!peer.link->traits().puts_need_polls) continue;
      LOCKSTEP_RETURN_IF_ERROR(
          Await(index, &LinkProgress::puts, peer.posted.puts, Patience::kStep));
    }
    open_ = false;
    return OkStatus();
  }

  Status SendReceive(int to, std::span<const std::byte> data, int from, std::span<std::byte> buffer,
                     Patience patience) override {
    LOCKSTEP_RETURN_IF_ERROR(Health());
    LOCKSTEP_CHECK(!open_ && to != rank() && from != rank() && to < size() && from < size());
    if (from >= 0) LOCKSTEP_RETURN_IF_ERROR(PostReceive(from, buffer));
    if (to >= 0) LOCKSTEP_RETURN_IF_ERROR(PostSend(to, data));
    if (to >= 0) {
      const uint64_t sends = peers_[to].posted.sends;
      LOCKSTEP_RETURN_IF_ERROR(Await(to, &LinkProgress::sends, sends, patience));
    }
    if (from < 0) return OkStatus();
    const uint64_t receives = peers_[from].posted.receives;
    LOCKSTEP_RETURN_IF_ERROR(Await(from, &LinkProgress::receives, receives, patience));
    return CheckTag(from, peers_[from].link->message_tag(receives - 1), Tag(receives, buffer));
  }

  void Abort(const Status& reason) override { options_.lifeline->Abort(reason); }

 private:
  // Where the open exchange's slots begin in every window.
  size_t half() const { return exchange_ % 2 * HalfBytes(traits_.slot_bytes); }
  bool Inside(SlotPart part) const {
    return part.offset <= slot_.size() && part.bytes <= slot_.size() - part.offset;
  }
  // What puts and messages carry, to show that both sides mean the same one: its number, and the
  // group's; where they are verified, mixed with a digest of the bytes.
  uint32_t Tag(uint64_t number, std::span<const std::byte> data) const {
    const uint32_t tag = options_.epoch << 24 | static_cast<uint32_t>(number & 0xffffff);
    if (!options_.verify_exchanges) return tag;
    const uint64_t digest = Digest64(data);
    return tag ^ static_cast<uint32_t>(digest ^ digest >> 32);
  }
  Status CheckTag(int index, uint32_t got, uint32_t expected) {
    if (got == expected) return OkStatus();
    if (options_.verify_exchanges) {
      return Fail(PeerLostError(
          "%s sent other bytes than arrived at %s in exchange %d: the link between them, or the "
          "memory of one of them, changes data",
          options_.names[index], options_.names[rank()], exchange_));
    }
    return Fail(PeerLostError(
        "%s sent number %d of group %d where %s expects number %d of group %d: the ranks are out "
        "of step",
        options_.names[index], got & 0xffffff, got >> 24, options_.names[rank()],
        expected & 0xffffff, expected >> 24));
  }

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
    return Fail(WithLostRank(PeerLostError("%s %s", options_.names[peer], MessageOf(link_error)),
                             options_.first_rank + peer));
  }

  Status PostSend(int to, std::span<const std::byte> data) {
    Peer& peer = peers_[to];
    const Status posted = peer.link->PostSend(data, Tag(++peer.posted.sends, data));
    return posted.ok() ? posted : FailPeer(to, posted);
  }

  Status PostReceive(int from, std::span<std::byte> buffer) {
    Peer& peer = peers_[from];
    ++peer.posted.receives;
    const Status posted = peer.link->PostReceive(buffer);
    return posted.ok() ? posted : FailPeer(from, posted);
  }

  Status PollPeer(int index) {
    const StatusOr<LinkProgress> progress = peers_[index].link->Poll();
    if (!progress.ok()) return FailPeer(index, progress.status());
    peers_[index].done = *progress;
    return OkStatus();
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

  // Until `count` of what `counter` counts are done.
  Status Await(int index, Counter counter, uint64_t count, Patience patience) {
    Peer& peer = peers_[index];
    if (peer.done.*counter >= count) return OkStatus();
    Backoff backoff(patience, options_.spin_us, options_.exchange_timeout_ms);
    bool others_sending = true;
    for (uint32_t look = 0;; ++look) {
      LOCKSTEP_RETURN_IF_ERROR(PollPeer(index));
      if (peer.done.*counter >= count) return OkStatus();
      if (look % kLooksPerRound == 0 || others_sending) {
        LOCKSTEP_RETURN_IF_ERROR(PollOthers(index, &others_sending));
      }
      LOCKSTEP_RETURN_IF_ERROR(Health());
      const int64_t nap_us = backoff.Next();
      if (backoff.expired())
        return Fail(WithLostRank(TimedOut(index, counter), options_.first_rank + index));
      if (nap_us > 0) {
        LOCKSTEP_RETURN_IF_ERROR(PollOthers(index, &others_sending));
        peer.link->WaitReadable(others_sending ? std::min<int64_t>(nap_us, 1000) : nap_us);
      }
    }
  }

  Status TimedOut(int index, Counter counter) const {
    const bool sends = counter == &LinkProgress::sends || counter == &LinkProgress::puts;
    return PeerLostError(
        "%s %s for %d ms in exchange %d, although it is connected: it is stuck, stopped or much "
        "slower than %s; see --exchange-timeout-ms",
        options_.names[index], sends ? "took no data" : "sent nothing that was expected",
        options_.exchange_timeout_ms, exchange_, options_.names[rank()]);
  }

  GroupOptions options_;
  GroupTraits traits_;
  Window window_;  // outlives the links
  std::vector<Peer> peers_;
  Status failure_;
  uint64_t exchange_ = 0;
  bool open_ = false;
};

}  // namespace

size_t LinkWindowBytes(size_t slot_bytes) { return 2 * HalfBytes(slot_bytes); }

StatusOr<std::unique_ptr<Group>> MakeLinkGroup(GroupOptions options, const char* name, Mesh mesh) {
  const auto size = static_cast<size_t>(options.size);
  if (mesh.links.size() != size || options.names.size() != size ||
      mesh.window.bytes().size() != LinkWindowBytes(options.slot_bytes)) {
    return InternalError("a group of %d ranks needs as many links and names, and its window", size);
  }
  return std::make_unique<LinkGroup>(std::move(options), name, std::move(mesh));
}

}  // namespace lockstep
