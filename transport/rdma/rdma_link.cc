// Puts are writes with the tag as immediate where the device can write (RC), packets where it
// cannot (UC); messages are packets. A packet is copied into a registered slot and out of one.
//
// The peer's receive queue never runs dry: of packets and writes at most kDataSlots are under way
// that the peer has not reported as consumed, and of acknowledgements at most a few, because each
// reports kDataSlots / 4 more. Over UC the same reports acknowledge: a sender repeats from the
// first packet that did not arrive (go-back-N), the receiver drops what is damaged or out of order.
#include "transport/rdma/rdma_link.h"

#include <poll.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "transport/frame.h"
#include "transport/rdma/packet.h"

namespace lockstep::rdma {
namespace {

constexpr size_t kPayloadBytes = kSlotBytes - sizeof(PacketHeader);
constexpr uint32_t kNoSlot = UINT32_MAX;
constexpr uint32_t kReportAfter = kDataSlots / 4;
// Polls without progress before an acknowledgement travels alone, and before the socket is asked
// whether the peer lives: a system call.
constexpr int kPollsBeforeReport = 32;
constexpr int kPollsPerLivenessCheck = 4096;
// What the device has received may come after the end of the socket, which takes another way.
constexpr int64_t kGraceNs = 20'000'000;
constexpr int64_t kFirstRepeatNs = 10'000'000;
constexpr int64_t kLongestRepeatNs = 320'000'000;

// Sequence numbers wrap.
int32_t Ahead(uint32_t a, uint32_t b) { return static_cast<int32_t>(a - b); }

// What the peer sends, of one kind: puts or messages.
struct Inbound {
  struct Target {
    FrameHeader expected;
    std::span<std::byte> buffer;
    size_t moved = 0;
  };
  struct Arrival {
    uint32_t slot = kNoSlot;  // of the packet; kNoSlot: the device wrote it in place
    uint32_t bytes = 0;
    uint32_t tag = 0;
  };
  Fifo<Target> targets;
  Fifo<Arrival> arrivals;
  uint64_t done = 0;
  std::array<uint32_t, kPutsAhead> tags{};
};

class RdmaLink final : public Link {
 public:
  RdmaLink(std::unique_ptr<QueuePair> queue_pair, UniqueFd socket,
           std::span<const std::byte> window, LinkPath path)
      : path_(std::move(path)),
        socket_(std::move(socket)),
        queue_pair_(std::move(queue_pair)),
        reliable_(queue_pair_->mode() == Mode::kReliable),
        window_(window),
        view_(queue_pair_->view()) {}

  const LinkTraits& traits() const override {
    static constexpr LinkTraits kTraits = {
        .name = "rdma", .detects_peer_death = true, .put_copies = true, .puts_need_polls = true};
    return kTraits;
  }
  LinkPath path() const override { return path_; }
  std::span<const std::byte> view() const override { return view_; }

  Status Put(size_t offset, size_t bytes, uint32_t tag) override {
    LOCKSTEP_CHECK(offset <= window_.size() && bytes <= window_.size() - offset);
    return Queue({FrameKind::kPut, tag, offset, bytes}, window_.subspan(offset, bytes));
  }
  Status Expect(size_t offset, size_t bytes) override {
    LOCKSTEP_CHECK(offset <= view_.size() && bytes <= view_.size() - offset);
    if (!socket_.valid()) return ConnectionClosed();
    puts_.targets.Push({{FrameKind::kPut, 0, offset, bytes}, view_.subspan(offset, bytes), 0});
    return OkStatus();
  }
  uint32_t put_tag(uint64_t number) const override { return puts_.tags[number % kPutsAhead]; }

  Status PostSend(std::span<const std::byte> data, uint32_t tag) override {
    return Queue({FrameKind::kMessage, tag, 0, data.size()}, data);
  }
  Status PostReceive(std::span<std::byte> buffer) override {
    if (!socket_.valid()) return ConnectionClosed();
    messages_.targets.Push({{FrameKind::kMessage, 0, 0, buffer.size()}, buffer, 0});
    return OkStatus();
  }
  uint32_t message_tag(uint64_t number) const override {
    return messages_.tags[number % kPutsAhead];
  }

  StatusOr<LinkProgress> Poll() override {
    if (!socket_.valid()) return ConnectionClosed();
    if (failure_.ok()) failure_ = Move();
    if (!failure_.ok()) return failure_;
    return LinkProgress{sent_messages_, messages_.done, sent_puts_, puts_.done};
  }

  void WaitReadable(int64_t timeout_us) override {
    if (!socket_.valid() || !failure_.ok()) return;
    queue_pair_->Arm();
    idle_polls_ = kPollsBeforeReport - 1;  // the peer hears of everything before this side sleeps
    failure_ = Move();
    if (failure_.ok() && idle_polls_ > 0) {
      if (Unacknowledged()) timeout_us = std::min(timeout_us, repeat_after_ns_ / 1000);
      pollfd entries[] = {{socket_.get(), POLLIN, 0}, {queue_pair_->descriptor(), POLLIN, 0}};
      const int64_t timeout_ms = std::clamp<int64_t>((timeout_us + 999) / 1000, 0, 1'000'000);
      (void)poll(entries, 2, static_cast<int>(timeout_ms));
      if (entries[0].revents != 0) idle_polls_ = kPollsPerLivenessCheck;  // look at once
    }
    queue_pair_->Disarm();
  }

  // What the peer still sends lands in memory that nobody reads any more.
  void Close() override { socket_.Reset(); }

 private:
  struct Outgoing {
    FrameHeader header;
    std::span<const std::byte> data;
    size_t moved = 0;
  };
  // What the next completion of a send means.
  enum class Sent { kPiece, kMessage, kPut, kAcknowledgement, kRepeated };

  bool Unacknowledged() const { return !reliable_ && peer_accepted_ != next_; }

  Status Queue(const FrameHeader& header, std::span<const std::byte> data) {
    if (!socket_.valid()) return ConnectionClosed();
    outgoing_.Push({header, data, 0});
    if (failure_.ok()) failure_ = Pump();
    return failure_;
  }

  Status Move() {
    bool moved = false;
    Completion completions[16];
    while (true) {
      const StatusOr<size_t> count = queue_pair_->Poll(completions);
      if (!count.ok()) return PeerIsGone() ? ConnectionClosed() : count.status();
      for (const Completion& completion : std::span(completions).first(*count)) {
        LOCKSTEP_RETURN_IF_ERROR(Handle(completion));
      }
      moved |= *count > 0;
      if (*count < std::size(completions)) break;
    }
    LOCKSTEP_RETURN_IF_ERROR(Deliver(&puts_));
    LOCKSTEP_RETURN_IF_ERROR(Deliver(&messages_));
    LOCKSTEP_RETURN_IF_ERROR(Pump());
    const bool due = Ahead(consumed_, reported_consumed_) >= static_cast<int32_t>(kReportAfter);
    if (due || report_now_ || again_) LOCKSTEP_RETURN_IF_ERROR(Report());
    if (moved) {
      idle_polls_ = 0;
      return OkStatus();
    }
    return Idle();
  }

  // A poll that found nothing.
  Status Idle() {
    if (++idle_polls_ == kPollsBeforeReport && !reliable_ && reported_accepted_ != accepted_) {
      LOCKSTEP_RETURN_IF_ERROR(Report());
    }
    if (idle_polls_ % kPollsBeforeReport == 0) LOCKSTEP_RETURN_IF_ERROR(RepeatIfLate());
    if (idle_polls_ < kPollsPerLivenessCheck) return OkStatus();
    idle_polls_ = 0;
    if (!PeerIsGone()) return OkStatus();
    const int64_t now = NowNs();
    if (gone_since_ns_ == 0) gone_since_ns_ = now;
    idle_polls_ = kPollsPerLivenessCheck;  // until the grace is over every poll looks
    return now - gone_since_ns_ > kGraceNs ? ConnectionClosed() : OkStatus();
  }

  bool PeerIsGone() const {
    std::byte bytes[64];
    return !ReceiveSome(socket_.get(), bytes).ok();
  }

  // --- out ---

  // A slot is free to be used again when the peer has read what was sent from it, and this side's
  // device knows.
  bool HasRoom() const {
    const uint32_t free_until = Ahead(completed_, peer_consumed_) < 0 ? completed_ : peer_consumed_;
    return next_ - free_until < kDataSlots;
  }

  Status Pump() {
    while (!outgoing_.empty() && HasRoom()) {
      Outgoing& item = outgoing_[0];
      if (reliable_ && item.header.kind == FrameKind::kPut) {
        LOCKSTEP_RETURN_IF_ERROR(
            queue_pair_->Write(item.header.offset, item.data.size(), item.header.tag));
        sent_.Push(Sent::kPut);
        item.moved = item.data.size();
      } else {
        LOCKSTEP_RETURN_IF_ERROR(SendPiece(&item));
      }
      ++next_;
      if (item.moved == item.data.size()) outgoing_.Pop();
    }
    return OkStatus();
  }

  Status SendPiece(Outgoing* item) {
    const std::span<const std::byte> left = item->data.subspan(item->moved);
    const std::span<const std::byte> piece = left.first(std::min(left.size(), kPayloadBytes));
    item->moved += piece.size();
    Sent meaning = item->header.kind == FrameKind::kPut ? Sent::kPut : Sent::kMessage;
    if (item->moved < item->data.size()) meaning = Sent::kPiece;
    const uint32_t slot = next_ % kDataSlots;
    packet_bytes_[slot] = sizeof(PacketHeader) + piece.size();
    if (!Unacknowledged()) repeat_at_ns_ = 0;
    return SendPacket(slot, item->header, piece, meaning);
  }

  Status SendPacket(uint32_t slot, const FrameHeader& frame, std::span<const std::byte> payload,
                    Sent meaning) {
    PacketHeader header;
    header.sequence = next_;
    header.accepted = reported_accepted_ = accepted_;
    header.consumed = reported_consumed_ = consumed_;
    header.bytes = static_cast<uint32_t>(payload.size());
    header.kind = frame.kind;
    header.tag = frame.tag;
    header.offset = frame.offset;
    header.whole_bytes = frame.bytes;
    const std::span<std::byte> packet =
        queue_pair_->send_slot(slot).first(sizeof(header) + payload.size());
    std::memcpy(packet.data(), &header, sizeof(header));
    if (!payload.empty()) {
      std::memcpy(packet.data() + sizeof(header), payload.data(), payload.size());
    }
    if (!reliable_) SealPacket(packet);
    sent_.Push(meaning);
    return queue_pair_->Send(slot, packet.size());
  }

  // An acknowledgement that carries nothing else; later, when too many are under way.
  Status Report() {
    report_now_ = acknowledgements_ == kAckSlots;
    if (report_now_) return OkStatus();
    ++acknowledgements_;
    const uint32_t slot = kDataSlots + next_acknowledgement_++ % kAckSlots;
    const FrameHeader frame = {kAcknowledgement, again_ ? kAgain : 0, 0, 0};
    again_ = false;
    return SendPacket(slot, frame, {}, Sent::kAcknowledgement);
  }

  // Over UC a packet that is not acknowledged for a while is taken for lost; a peer that does not
  // poll looks the same, so the while grows.
  Status RepeatIfLate() {
    if (!Unacknowledged()) return OkStatus();
    const int64_t now = NowNs();
    if (repeat_at_ns_ == 0) repeat_at_ns_ = now + repeat_after_ns_;
    if (now < repeat_at_ns_) return OkStatus();
    repeat_after_ns_ = std::min(repeat_after_ns_ * 2, kLongestRepeatNs);
    return Repeat();
  }

  Status Repeat() {
    repeat_at_ns_ = 0;
    if (repeated_ > 0) return OkStatus();  // still under way
    for (uint32_t sequence = peer_accepted_; sequence != next_; ++sequence) {
      const uint32_t slot = sequence % kDataSlots;
      ++repeated_;
      sent_.Push(Sent::kRepeated);
      LOCKSTEP_RETURN_IF_ERROR(queue_pair_->Send(slot, packet_bytes_[slot]));
    }
    return OkStatus();
  }

  // --- in ---

  Status Handle(const Completion& completion) {
    switch (completion.kind) {
      case Completion::Kind::kSent:
        HandleSent();
        return OkStatus();
      case Completion::Kind::kWritten:
        ++accepted_;
        LOCKSTEP_RETURN_IF_ERROR(queue_pair_->Receive(completion.slot));
        return Arrive(&puts_, {kNoSlot, completion.bytes, completion.tag});
      case Completion::Kind::kPacket:
        return HandlePacket(completion);
    }
    return OkStatus();
  }

  void HandleSent() {
    const Sent meaning = sent_[0];
    sent_.Pop();
    if (meaning == Sent::kAcknowledgement) {
      --acknowledgements_;
    } else if (meaning == Sent::kRepeated) {
      --repeated_;
    } else {
      ++completed_;
      sent_messages_ += meaning == Sent::kMessage;
      sent_puts_ += meaning == Sent::kPut;
    }
  }

  Status HandlePacket(const Completion& completion) {
    const std::span<const std::byte> packet =
        queue_pair_->receive_slot(completion.slot).first(completion.bytes);
    const std::optional<PacketHeader> header = OpenPacket(packet, !reliable_);
    const bool acknowledgement = header && header->kind == kAcknowledgement;
    if (header) LOCKSTEP_RETURN_IF_ERROR(HandleReport(*header));
    if (acknowledgement) return queue_pair_->Receive(completion.slot);
    if (!header || header->sequence != accepted_) {
      if (reliable_) return PeerLostError("sent a damaged packet or left one out");
      // What was repeated in vain is acknowledged again; what is missing is asked for once, and
      // comes by the sender's clock if the question is lost.
      if (header && Ahead(header->sequence, accepted_) < 0) {
        report_now_ = true;
      } else if (asked_for_ != accepted_) {
        asked_for_ = accepted_;
        again_ = true;
      }
      return queue_pair_->Receive(completion.slot);
    }
    ++accepted_;
    Inbound* inbound = header->kind == FrameKind::kPut ? &puts_ : &messages_;
    return Arrive(inbound, {completion.slot, header->bytes, header->tag});
  }

  Status HandleReport(const PacketHeader& header) {
    if (Ahead(header.accepted, next_) > 0 || Ahead(header.consumed, header.accepted) > 0) {
      return PeerLostError("acknowledges what was never sent");
    }
    if (Ahead(header.accepted, peer_accepted_) > 0) {
      peer_accepted_ = header.accepted;
      repeat_after_ns_ = kFirstRepeatNs;
      repeat_at_ns_ = 0;
    }
    if (Ahead(header.consumed, peer_consumed_) > 0) peer_consumed_ = header.consumed;
    const bool again = header.kind == kAcknowledgement && header.tag == kAgain;
    return again && Unacknowledged() ? Repeat() : OkStatus();
  }

  Status Arrive(Inbound* inbound, const Inbound::Arrival& arrival) {
    inbound->arrivals.Push(arrival);
    if (inbound->arrivals.size() <= kDataSlots) return OkStatus();
    return PeerLostError("sent more than was agreed on");
  }

  // What has arrived goes where it is expected.
  Status Deliver(Inbound* inbound) {
    while (!inbound->arrivals.empty() && !inbound->targets.empty()) {
      const Inbound::Arrival& arrival = inbound->arrivals[0];
      Inbound::Target& target = inbound->targets[0];
      if (arrival.slot == kNoSlot) {
        const FrameHeader got = {FrameKind::kPut, arrival.tag, target.expected.offset,
                                 arrival.bytes};
        FrameHeader expected = target.expected;
        expected.bytes = LastMessage(expected.bytes);
        LOCKSTEP_RETURN_IF_ERROR(CheckFrame(got, expected));
        target.moved = target.buffer.size();
      } else {
        LOCKSTEP_RETURN_IF_ERROR(CopyOut(arrival, &target));
      }
      ++consumed_;
      if (target.moved == target.buffer.size()) {
        inbound->tags[inbound->done++ % kPutsAhead] = arrival.tag;
        inbound->targets.Pop();
      }
      inbound->arrivals.Pop();
    }
    return OkStatus();
  }

  // The bytes that announce a write: those of its last message.
  size_t LastMessage(size_t bytes) const {
    return bytes == 0 ? 0 : (bytes - 1) % queue_pair_->largest_message() + 1;
  }

  Status CopyOut(const Inbound::Arrival& arrival, Inbound::Target* target) {
    const std::span<const std::byte> packet = queue_pair_->receive_slot(arrival.slot);
    PacketHeader header;
    std::memcpy(&header, packet.data(), sizeof(header));
    LOCKSTEP_RETURN_IF_ERROR(
        CheckFrame({header.kind, header.tag, header.offset, header.whole_bytes}, target->expected));
    if (arrival.bytes > target->buffer.size() - target->moved) {
      return PeerLostError("sent more bytes than it announced");
    }
    if (arrival.bytes > 0) {
      std::memcpy(target->buffer.data() + target->moved, packet.data() + sizeof(header),
                  arrival.bytes);
    }
    target->moved += arrival.bytes;
    return queue_pair_->Receive(arrival.slot);
  }

  const LinkPath path_;
  UniqueFd socket_;
  std::unique_ptr<QueuePair> queue_pair_;
  const bool reliable_;
  const std::span<const std::byte> window_;
  const std::span<std::byte> view_;
  Status failure_;
  int idle_polls_ = 0;
  int64_t gone_since_ns_ = 0;

  Fifo<Outgoing> outgoing_;
  Fifo<Sent> sent_;                                // one per completion to come
  std::array<size_t, kDataSlots> packet_bytes_{};  // by slot
  uint32_t next_ = kFirstSequence;                 // sequence number of the next packet or write
  uint32_t completed_ = kFirstSequence;            // of those, as this side's device says
  uint32_t peer_accepted_ = kFirstSequence, peer_consumed_ = kFirstSequence;
  uint32_t acknowledgements_ = 0, next_acknowledgement_ = 0;  // under way; slot to come
  uint64_t sent_messages_ = 0, sent_puts_ = 0;
  // Repetition, over UC.
  uint32_t repeated_ = 0;
  int64_t repeat_at_ns_ = 0;  // 0: not set yet
  int64_t repeat_after_ns_ = kFirstRepeatNs;

  Inbound puts_, messages_;
  uint32_t accepted_ = kFirstSequence, consumed_ = kFirstSequence;
  uint32_t reported_accepted_ = kFirstSequence, reported_consumed_ = kFirstSequence;
  bool report_now_ = false;
  bool again_ = false;
  uint32_t asked_for_ = kFirstSequence - 1;  // the packet that was asked for last
};

}  // namespace

std::unique_ptr<Link> MakeLinkOver(std::unique_ptr<QueuePair> queue_pair, UniqueFd socket,
                                   std::span<const std::byte> window, LinkPath path) {
  return std::make_unique<RdmaLink>(std::move(queue_pair), std::move(socket), window,
                                    std::move(path));
}

}  // namespace lockstep::rdma
