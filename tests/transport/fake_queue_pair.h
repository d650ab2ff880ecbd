// Two ends of a queue pair in memory, for tests of the RDMA link without a device: packets may be
// lost or damaged, and the completions of sends come late.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <random>
#include <vector>

#include "transport/rdma/queue_pair.h"
#include "transport/socket.h"

namespace lockstep::rdma {

struct FakeOptions {
  Mode mode = Mode::kReliable;
  double lost = 0;     // share of the packets that never arrive
  double damaged = 0;  // share of those that arrive with one bit turned
  size_t largest_message = size_t{1} << 30;
  uint32_t seed = 1;
};

class FakePair final : public QueuePair {
 public:
  using Two = std::array<std::unique_ptr<FakePair>, 2>;
  // `windows` outlive both.
  static Two Make(const FakeOptions& options, std::array<std::span<const std::byte>, 2> windows) {
    auto wire = std::make_shared<Wire>(options);
    Two pair;
    for (size_t side = 0; side < 2; ++side) {
      pair[side].reset(new FakePair(wire, side, windows[side]));
      wire->ends[side].view.resize(windows[1 - side].size());
      for (uint32_t slot = 0; slot < kSlots; ++slot) wire->ends[side].given.push_back(slot);
    }
    return pair;
  }
  ~FakePair() override {
    const std::lock_guard lock(wire_->mutex);
    wire_->ends[side_].gone = true;
  }

  Mode mode() const override { return wire_->options.mode; }
  std::span<std::byte> send_slot(uint32_t slot) override { return Slot(&own().out, slot); }
  std::span<std::byte> receive_slot(uint32_t slot) override { return Slot(&own().in, slot); }
  std::span<std::byte> view() override { return own().view; }
  size_t largest_message() const override { return wire_->options.largest_message; }

  Status Send(uint32_t slot, size_t bytes) override {
    const std::lock_guard lock(wire_->mutex);
    own().sent.push_back({Completion::Kind::kSent, 0, 0, 0});
    const double fate = std::uniform_real_distribution<>(0, 1)(wire_->random);
    const FakeOptions& options = wire_->options;
    if (fate < options.lost) return OkStatus();
    uint32_t to = 0;
    if (!TakeReceive(&to)) return Overrun();
    const std::span<std::byte> landed = Slot(&peer().in, to);
    std::memcpy(landed.data(), send_slot(slot).data(), bytes);
    if (fate < options.lost + options.damaged) {
      landed[wire_->random() % bytes] ^= static_cast<std::byte>(1u << (wire_->random() % 8));
    }
    Announce({Completion::Kind::kPacket, to, static_cast<uint32_t>(bytes), 0});
    return OkStatus();
  }

  Status Write(size_t offset, size_t bytes, uint32_t tag) override {
    const std::lock_guard lock(wire_->mutex);
    own().sent.push_back({Completion::Kind::kSent, 0, 0, 0});
    uint32_t to = 0;
    if (!TakeReceive(&to)) return Overrun();
    if (bytes > 0) std::memcpy(peer().view.data() + offset, window_.data() + offset, bytes);
    const size_t last = bytes == 0 ? 0 : (bytes - 1) % largest_message() + 1;
    Announce({Completion::Kind::kWritten, to, static_cast<uint32_t>(last), tag});
    return OkStatus();
  }

  Status Receive(uint32_t slot) override {
    const std::lock_guard lock(wire_->mutex);
    own().given.push_back(slot);
    return OkStatus();
  }

  StatusOr<size_t> Poll(std::span<Completion> completions) override {
    const std::lock_guard lock(wire_->mutex);
    size_t count = 0;
    const auto take = [&](std::deque<Completion>* queue) {
      completions[count++] = queue->front();
      queue->pop_front();
    };
    while (count < completions.size() && !own().arrived.empty()) take(&own().arrived);
    // Now and then, so that sends complete after what the peer answered.
    while (count < completions.size() && !own().sent.empty() && wire_->random() % 4 == 0) {
      take(&own().sent);
    }
    return count;
  }

  int descriptor() const override { return event_.get(); }
  void Arm() override {}
  void Disarm() override {
    uint64_t events = 0;
    (void)!read(event_.get(), &events, sizeof(events));
  }

 private:
  struct End {
    std::vector<std::byte> out = std::vector<std::byte>(size_t{kSlots} * kSlotBytes);
    std::vector<std::byte> in = std::vector<std::byte>(size_t{kSlots} * kSlotBytes);
    std::vector<std::byte> view;
    std::deque<uint32_t> given;
    std::deque<Completion> arrived, sent;
    int event = -1;
    bool gone = false;
  };
  struct Wire {
    explicit Wire(const FakeOptions& chosen) : options(chosen), random(chosen.seed) {}
    std::mutex mutex;
    const FakeOptions options;
    std::mt19937 random;
    std::array<End, 2> ends;
  };

  FakePair(std::shared_ptr<Wire> wire, size_t side, std::span<const std::byte> window)
      : wire_(std::move(wire)),
        side_(side),
        window_(window),
        event_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
    own().event = event_.get();
  }
  End& own() { return wire_->ends[side_]; }
  End& peer() { return wire_->ends[1 - side_]; }
  static std::span<std::byte> Slot(std::vector<std::byte>* memory, uint32_t slot) {
    return std::span(*memory).subspan(size_t{slot} * kSlotBytes, kSlotBytes);
  }

  bool TakeReceive(uint32_t* slot) {
    if (peer().gone || peer().given.empty()) return false;
    *slot = peer().given.front();
    peer().given.pop_front();
    return true;
  }
  // A packet that meets no receive is lost over UC; over RC that must never happen.
  Status Overrun() {
    if (mode() == Mode::kUnreliable || peer().gone) return OkStatus();
    return InternalError("the peer's receive queue ran dry");
  }
  void Announce(const Completion& completion) {
    peer().arrived.push_back(completion);
    const uint64_t one = 1;
    (void)!write(peer().event, &one, sizeof(one));
  }

  const std::shared_ptr<Wire> wire_;
  const size_t side_;
  const std::span<const std::byte> window_;
  const UniqueFd event_;
};

}  // namespace lockstep::rdma
