// A group that measures another one: the time of its exchanges and the bytes that leave, for rank
// 0's metrics and for `lockstep bench`. It reads the clock some eight times an exchange, which is a
// twentieth of the fastest one.
#pragma once

#include <memory>
#include <utility>

#include "collectives/group.h"
#include "collectives/rank_meter.h"
#include "runtime/base/clock.h"

namespace lockstep {

class TimedGroup final : public Group {
 public:
  // `counted` outlives the group. Exchanges count from the filled slot until all slots are read (so
  // with the sum of them), messages from rank to rank as a whole, but not while nothing is to be
  // done (Patience::kIdle).
  TimedGroup(std::unique_ptr<Group> inner, RankMeter::Exchanges* counted)
      : Group(inner->rank(), inner->size()), inner_(std::move(inner)), counted_(counted) {}

  const GroupTraits& traits() const override { return inner_->traits(); }
  StatusOr<std::span<std::byte>> Begin(size_t bytes) override {
    const int64_t start_ns = NowNs();
    LOCKSTEP_ASSIGN_OR_RETURN(slot_, inner_->Begin(bytes));
    Add(start_ns, 0);
    filled_ns_ = 0;
    return slot_;
  }
  Status ExpectPart(int peer, SlotPart part) override {
    if (filled_ns_ == 0) filled_ns_ = NowNs();
    return inner_->ExpectPart(peer, part);
  }
  Status PublishPart(int peer, SlotPart part) override {
    if (filled_ns_ == 0) filled_ns_ = NowNs();
    counted_->bytes += part.bytes;
    return inner_->PublishPart(peer, part);
  }
  StatusOr<std::span<const std::byte>> Wait(int peer) override {
    if (peer == rank()) return inner_->Wait(peer);
    const int64_t start_ns = NowNs();
    auto part = inner_->Wait(peer);
    counted_->wait_ns += NowNs() - start_ns;
    return part;
  }
  Status End() override {
    const int64_t start_ns = NowNs();
    Status ended = inner_->End();
    if (filled_ns_ == 0) return ended;
    counted_->wait_ns += NowNs() - start_ns;
    Add(filled_ns_, 1);
    return ended;
  }
  Status SendReceive(int to, std::span<const std::byte> data, int from, std::span<std::byte> buffer,
                     Patience patience) override {
    const int64_t start_ns = NowNs();
    Status sent = inner_->SendReceive(to, data, from, buffer, patience);
    counted_->bytes += data.size();
    if (patience == Patience::kIdle) return sent;
    counted_->wait_ns += NowNs() - start_ns;
    Add(start_ns, 1);
    return sent;
  }
  void set_sum_order(SumOrder order) override {
    Group::set_sum_order(order);
    inner_->set_sum_order(order);
  }
  Status SumInAnyOrder(std::span<float> data) override {
    inner_->set_sum_limits(sum_limits());
    const int64_t start_ns = NowNs();
    Status summed = inner_->SumInAnyOrder(data);
    Add(start_ns, 1);
    return summed;
  }
  void Abort(const Status& reason) override { inner_->Abort(reason); }

 private:
  void Add(int64_t start_ns, int64_t calls) {
    counted_->ns += NowNs() - start_ns;
    counted_->calls += calls;
  }

  const std::unique_ptr<Group> inner_;
  RankMeter::Exchanges* const counted_;
  int64_t filled_ns_ = 0;  // 0: nothing is expected or published yet
};

}  // namespace lockstep
