#include <algorithm>
#include <deque>
#include <span>
#include <utility>

#include "transport/delay.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

// What was asked for and the inner link has not been told yet.
struct Held {
  int64_t leaves_ns = 0;
  bool put = false;
  size_t offset = 0, bytes = 0;     // of a put
  std::span<const std::byte> data;  // of a message
  uint32_t tag = 0;
};

class DelayedLink final : public Link {
 public:
  DelayedLink(std::unique_ptr<Link> inner, std::shared_ptr<const AddedLatency> latency,
              const Clock& clock)
      : inner_(std::move(inner)),
        latency_(std::move(latency)),
        clock_(clock),
        traits_(inner_->traits()) {
    traits_.puts_need_polls = true;
  }

  const LinkTraits& traits() const override {
    return held_.empty() && latency_->ns == 0 ? inner_->traits() : traits_;
  }
  LinkPath path() const override { return inner_->path(); }
  std::span<const std::byte> view() const override { return inner_->view(); }

  Status Put(size_t offset, size_t bytes, uint32_t tag) override {
    return Hold({.put = true, .offset = offset, .bytes = bytes, .tag = tag});
  }
  Status PostSend(std::span<const std::byte> data, uint32_t tag) override {
    return Hold({.data = data, .tag = tag});
  }
  Status Expect(size_t offset, size_t bytes) override { return inner_->Expect(offset, bytes); }
  Status PostReceive(std::span<std::byte> buffer) override { return inner_->PostReceive(buffer); }
  uint32_t put_tag(uint64_t number) const override { return inner_->put_tag(number); }
  uint32_t message_tag(uint64_t number) const override { return inner_->message_tag(number); }

  StatusOr<LinkProgress> Poll() override {
    if (!held_.empty()) LOCKSTEP_RETURN_IF_ERROR(LetGo());
    return inner_->Poll();
  }

  void WaitReadable(int64_t timeout_us) override {
    if (!held_.empty())
      timeout_us = std::min(timeout_us, (held_.front().leaves_ns - clock_.NowNs()) / 1000);
    if (timeout_us > 0) inner_->WaitReadable(timeout_us);
  }
  void Close() override {
    held_.clear();
    closed_ = true;
    inner_->Close();
  }

 private:
  Status Hold(Held item) {
    if (closed_) return ConnectionClosed();
    const int64_t latency_ns = latency_->ns;
    if (latency_ns == 0 && held_.empty()) return Pass(item);
    item.leaves_ns = clock_.NowNs() + latency_ns;
    // In their order, also where the latency has just become less.
    if (!held_.empty()) item.leaves_ns = std::max(item.leaves_ns, held_.back().leaves_ns);
    held_.push_back(item);
    return OkStatus();
  }

  Status LetGo() {
    const int64_t now_ns = clock_.NowNs();
    while (!held_.empty() && held_.front().leaves_ns <= now_ns) {
      const Held item = held_.front();
      held_.pop_front();
      LOCKSTEP_RETURN_IF_ERROR(Pass(item));
    }
    return OkStatus();
  }

  Status Pass(const Held& item) {
    return item.put ? inner_->Put(item.offset, item.bytes, item.tag)
                    : inner_->PostSend(item.data, item.tag);
  }

  const std::unique_ptr<Link> inner_;
  const std::shared_ptr<const AddedLatency> latency_;
  const Clock& clock_;
  LinkTraits traits_;
  std::deque<Held> held_;
  bool closed_ = false;
};

}  // namespace

std::unique_ptr<Link> MakeDelayedLink(std::unique_ptr<Link> inner,
                                      std::shared_ptr<const AddedLatency> latency,
                                      const Clock& clock) {
  return std::make_unique<DelayedLink>(std::move(inner), std::move(latency), clock);
}

}  // namespace lockstep
