// A group of one rank.
#include <utility>

#include "collectives/backends.h"
#include "collectives/slots.h"
#include "runtime/base/check.h"

namespace lockstep {
namespace {

class SingleGroup final : public Group {
 public:
  explicit SingleGroup(GroupOptions options)
      : Group(0, 1),
        lifeline_(std::move(options.lifeline)),
        traits_{.name = "single",
                .slot_bytes = options.slot_bytes,
                .reads_in_place = false,
                .slots_in_parts = true,
                .any_order_is_fixed = true},
        slots_(1, options.slot_bytes) {}

  bool valid() const { return slots_.valid(); }
  const GroupTraits& traits() const override { return traits_; }
  StatusOr<std::span<std::byte>> Begin(size_t bytes) override {
    LOCKSTEP_CHECK(bytes <= traits_.slot_bytes);
    if (lifeline_->broken()) return lifeline_->reason();
    return slot_ = slots_.Of(0, bytes);
  }
  Status ExpectPart(int peer, SlotPart) override {
    LOCKSTEP_CHECK(peer < 0);  // there is no other rank
    return OkStatus();
  }
  Status PublishPart(int peer, SlotPart) override {
    LOCKSTEP_CHECK(peer < 0);
    return OkStatus();
  }
  StatusOr<std::span<const std::byte>> Wait(int peer) override {
    LOCKSTEP_CHECK(peer == 0);
    return slot_;
  }
  Status End() override { return OkStatus(); }
  Status SendReceive(int to, std::span<const std::byte>, int from, std::span<std::byte>,
                     Patience) override {
    LOCKSTEP_CHECK(to < 0 && from < 0);
    return lifeline_->broken() ? lifeline_->reason() : OkStatus();
  }
  void Abort(const Status& reason) override { lifeline_->Abort(reason); }

 private:
  std::shared_ptr<Lifeline> lifeline_;
  GroupTraits traits_;
  Slots slots_;
};

}  // namespace

StatusOr<std::unique_ptr<Group>> MakeSingleGroup(GroupOptions options) {
  auto group = std::make_unique<SingleGroup>(std::move(options));
  if (!group->valid()) return InternalError("no memory for the exchange slot");
  return group;
}

}  // namespace lockstep
