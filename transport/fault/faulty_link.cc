#include <algorithm>
#include <cstring>
#include <deque>
#include <random>
#include <utility>
#include <vector>

#include "transport/fault.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

// What one rank asked for and the inner link has not been told yet.
struct Held {
  bool put = false;
  size_t offset = 0;
  std::span<const std::byte> data;  // of a message
  size_t bytes = 0;
  uint32_t tag = 0;
  uint64_t leaves_at = 0;  // number of the poll
};

class FaultyLink final : public Link {
 public:
  FaultyLink(std::unique_ptr<Link> inner, const FaultOptions& options)
      : inner_(std::move(inner)),
        options_(options),
        random_(options.seed),
        traits_(inner_->traits()),
        view_(options.corrupt_at >= 0 ? inner_->view().size() : 0) {
    traits_.puts_need_polls = true;
  }

  const LinkTraits& traits() const override { return traits_; }
  std::span<const std::byte> view() const override {
    return options_.corrupt_at >= 0 ? std::span<const std::byte>(view_) : inner_->view();
  }

  Status Put(size_t offset, size_t bytes, uint32_t tag) override {
    return Hold({.put = true, .offset = offset, .bytes = bytes, .tag = tag});
  }
  Status PostSend(std::span<const std::byte> data, uint32_t tag) override {
    return Hold({.data = data, .bytes = data.size(), .tag = tag});
  }
  Status Expect(size_t offset, size_t bytes) override {
    if (options_.corrupt_at >= 0) ranges_.push_back({offset, bytes});
    return inner_->Expect(offset, bytes);
  }
  Status PostReceive(std::span<std::byte> buffer) override {
    if (options_.corrupt_at >= 0) buffers_.push_back(buffer);
    return inner_->PostReceive(buffer);
  }
  uint32_t put_tag(uint64_t number) const override { return inner_->put_tag(number); }
  uint32_t message_tag(uint64_t number) const override { return inner_->message_tag(number); }

  StatusOr<LinkProgress> Poll() override {
    ++polls_;
    LOCKSTEP_RETURN_IF_ERROR(LetGo());
    LOCKSTEP_ASSIGN_OR_RETURN(const LinkProgress real, inner_->Poll());
    if (options_.corrupt_at >= 0) Corrupt(real);
    ReportLate(real.sends, &told_.sends);
    ReportLate(real.receives, &told_.receives);
    ReportLate(real.puts, &told_.puts);
    ReportLate(real.arrivals, &told_.arrivals);
    hides_ = real.sends != told_.sends || real.receives != told_.receives ||
             real.puts != told_.puts || real.arrivals != told_.arrivals;
    return told_;
  }

  void WaitReadable(int64_t timeout_us) override {
    // What is held or hidden waits for polls, and no news would end the sleep.
    if (!hides_ && (held_.empty() || silent_)) inner_->WaitReadable(timeout_us);
  }
  void Close() override {
    closed_ = true;
    inner_->Close();
  }

 private:
  Status Hold(Held item) {
    if (closed_) return ConnectionClosed();
    const int64_t number = posted_++;
    if (number == options_.cut_at) inner_->Close();
    silent_ = silent_ || number == options_.silent_at;
    uint64_t late = options_.most_polls_late > 0 ? random_() % (options_.most_polls_late + 1) : 0;
    if (options_.bytes_per_poll > 0) late += item.bytes / options_.bytes_per_poll;
    item.leaves_at = std::max(polls_, last_leaves_at_) + late;
    last_leaves_at_ = item.leaves_at;
    held_.push_back(item);
    return LetGo();
  }

  Status LetGo() {
    while (!silent_ && !held_.empty() && held_.front().leaves_at <= polls_) {
      const Held item = held_.front();
      held_.pop_front();
      LOCKSTEP_RETURN_IF_ERROR(item.put ? inner_->Put(item.offset, item.bytes, item.tag)
                                        : inner_->PostSend(item.data, item.tag));
    }
    return OkStatus();
  }

  void ReportLate(uint64_t real, uint64_t* told) {
    if (*told == real) return;
    const uint32_t odds = options_.most_polls_late / 4 + 1;
    if (random_() % odds == 0) *told = real;
  }

  // What has newly arrived gets its wrong bits; every incoming put and message is counted.
  void Corrupt(const LinkProgress& real) {
    for (; seen_.arrivals < real.arrivals; ++seen_.arrivals) {
      const auto [offset, bytes] = ranges_.front();
      ranges_.pop_front();
      if (bytes > 0) std::memcpy(view_.data() + offset, inner_->view().data() + offset, bytes);
      FlipOneBit(std::span(view_).subspan(offset, bytes));
    }
    for (; seen_.receives < real.receives; ++seen_.receives) {
      FlipOneBit(buffers_.front());
      buffers_.pop_front();
    }
  }
  void FlipOneBit(std::span<std::byte> data) {
    if (received_++ < options_.corrupt_at || data.empty()) return;
    const uint64_t draw = random_();
    data[(draw >> 3) % data.size()] ^= std::byte{1} << (draw & 7);
  }

  const std::unique_ptr<Link> inner_;
  const FaultOptions options_;
  std::mt19937_64 random_;
  LinkTraits traits_;
  std::deque<Held> held_;
  uint64_t polls_ = 0, last_leaves_at_ = 0;
  int64_t posted_ = 0, received_ = 0;
  bool silent_ = false, hides_ = false, closed_ = false;
  LinkProgress told_, seen_;
  // Only where bits go wrong: the ranges and buffers that arrivals and receives will fill.
  std::vector<std::byte> view_;
  std::deque<std::pair<size_t, size_t>> ranges_;
  std::deque<std::span<std::byte>> buffers_;
};

}  // namespace

std::unique_ptr<Link> MakeFaultyLink(std::unique_ptr<Link> inner, const FaultOptions& options) {
  return std::make_unique<FaultyLink>(std::move(inner), options);
}

}  // namespace lockstep
