// Stage links over our own transports.
#include <array>
#include <memory>
#include <utility>

#include "collectives/wait.h"
#include "runtime/engine/stage_link.h"

namespace lockstep {
namespace {

class TransportStageLink final : public StageLink {
 public:
  TransportStageLink(StagePeers peers, const char* name, Mesh rows, Mesh outcomes, bool crowded)
      : peers_(std::move(peers)),
        name_(name),
        spin_us_(crowded ? 0 : 100),
        rows_window_(std::move(rows.window)),
        outcomes_window_(std::move(outcomes.window)),
        outbox_(peers_) {
    if (peers_.from >= 0)
      incoming_ = std::move((peers_.receives_outcomes ? outcomes : rows).links[peers_.from]);
    if (peers_.to < 0) return;
    outgoing_ = std::move((peers_.sends_outcomes ? outcomes : rows).links[peers_.to]);
    outbox_.Start([this](const StageHeader& header, std::span<const std::byte> bytes) {
      return SendOne(header, bytes);
    });
  }

  const char* name() const override { return name_; }

  Status Send(const StageHeader& header, std::span<const std::byte> bytes,
              Deadline deadline) override {
    return outbox_.Put(header, bytes, deadline);
  }

  Status Receive(const StageHeader& expected, Deadline deadline,
                 std::vector<std::byte>* bytes) override {
    std::array<std::byte, kStageHeaderBytes> raw{};
    LOCKSTEP_RETURN_IF_ERROR(ReceiveBytes(raw, deadline));
    const StatusOr<StageHeader> header = DecodeStageHeader(raw);
    if (!header.ok()) return WrongFrom(peers_, peers_.from, header.status());
    LOCKSTEP_RETURN_IF_ERROR(CheckHeader(peers_, *header, expected));
    bytes->resize(header->bytes);
    if (!bytes->empty()) LOCKSTEP_RETURN_IF_ERROR(ReceiveBytes(*bytes, deadline));
    return CheckBytes(peers_, *header, *bytes);
  }

 private:
  using Counter = uint64_t LinkProgress::*;

  // Until `count` of what `counter` counts are done. `go_on` is asked between looks.
  template <typename GoOn>
  Status Await(Link& link, int peer, Counter counter, uint64_t count, const GoOn& go_on) {
    Backoff backoff(Patience::kIdle, spin_us_, 0);
    while (true) {
      const StatusOr<LinkProgress> progress = link.Poll();
      if (!progress.ok()) return BrokenBy(peers_, peer, MessageOf(progress.status()));
      if ((*progress).*counter >= count) return OkStatus();
      LOCKSTEP_RETURN_IF_ERROR(peers_.health());
      LOCKSTEP_RETURN_IF_ERROR(go_on());
      if (const int64_t nap_us = backoff.Next(); nap_us > 0) link.WaitReadable(nap_us);
    }
  }

  Status ReceiveBytes(std::span<std::byte> to, Deadline deadline) {
    const Status posted = incoming_->PostReceive(to);
    if (!posted.ok()) return BrokenBy(peers_, peers_.from, MessageOf(posted));
    return Await(*incoming_, peers_.from, &LinkProgress::receives, ++received_, [&] {
      return deadline.Passed() ? TooLate(peers_, peers_.from, "sent nothing that was expected")
                               : OkStatus();
    });
  }

  // On the outbox's thread, which alone touches `outgoing_`.
  Status SendOne(const StageHeader& header, std::span<const std::byte> bytes) {
    const std::array<std::byte, kStageHeaderBytes> raw = EncodeStageHeader(header);
    Status posted = outgoing_->PostSend(raw, 0);
    ++sent_;
    if (posted.ok() && !bytes.empty()) {
      posted = outgoing_->PostSend(bytes, 0);
      ++sent_;
    }
    if (!posted.ok()) return BrokenBy(peers_, peers_.to, MessageOf(posted));
    return Await(*outgoing_, peers_.to, &LinkProgress::sends, sent_, [&] {
      return outbox_.stopping() ? InternalError("the stage link has ended") : OkStatus();
    });
  }

  const StagePeers peers_;
  const char* const name_;
  const int64_t spin_us_;
  const Window rows_window_, outcomes_window_;  // outlive the links
  std::unique_ptr<Link> incoming_, outgoing_;
  uint64_t received_ = 0;
  uint64_t sent_ = 0;  // the outbox's
  StageOutbox outbox_;
};

}  // namespace

StatusOr<std::unique_ptr<StageLink>> MakeTransportStageLink(StagePeers peers, const char* name,
                                                            Mesh rows, Mesh outcomes,
                                                            bool crowded) {
  const size_t ranks = peers.names.size();
  if (rows.links.size() != ranks || outcomes.links.size() != ranks)
    return InternalError("a stage link of %d ranks needs as many links", ranks);
  return std::make_unique<TransportStageLink>(std::move(peers), name, std::move(rows),
                                              std::move(outcomes), crowded);
}

}  // namespace lockstep
