// One lock guards the whole network: what is simulated is order, not speed.
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <tuple>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/split_mix.h"
#include "transport/frame.h"
#include "transport/sim.h"

namespace lockstep {
namespace {

// A rank that polled so often in a row without news and without a call waits for something.
constexpr uint32_t kIdlePolls = 64;
// Up to here a message leaves before the peer expects it, as out of a socket's buffer.
constexpr size_t kBufferedBytes = size_t{256} << 10;

class SharedClock final : public Clock {
 public:
  int64_t NowNs() const override { return now_ns_.load(); }
  void Set(int64_t now_ns) { now_ns_.store(now_ns); }

 private:
  std::atomic<int64_t> now_ns_{0};
};

// A put or a message under way.
struct Frame {
  FrameHeader header;
  std::span<const std::byte> data;  // of the sender
  std::vector<std::byte> copy;      // of what has left
  bool buffered = false;            // leaves before it arrives
};

// Everything from one rank to another, in order.
struct Flow {
  std::deque<Frame> waiting;  // not left yet
  std::deque<Frame> under_way;
  std::deque<std::pair<FrameHeader, std::span<std::byte>>> expected;
  size_t arrived = 0;  // frames at the front of under_way that have arrived
  uint64_t number = 0;
  int64_t busy_until_ns = 0, last_due_ns = 0;
  bool closed = false;                                // by the sender
  bool end_seen = false;                              // the receiver knows
  Status failure;                                     // of the receiving side
  uint64_t puts_left = 0, messages_left = 0;          // for the sender's progress
  uint64_t puts_received = 0, messages_received = 0;  // for the receiver's
  std::array<uint32_t, kPutsAhead> put_tags{}, message_tags{};
};

struct RankState {
  uint32_t idle_polls = 0;
  bool sleeps = false;
  bool news = false;  // since it fell asleep
  int open_links = 0;
  int64_t called_ns = 0;  // real time
};

enum class EventKind { kLeft, kArrived, kEnd };

class Network {
 public:
  explicit Network(const SimOptions& options)
      : options_(options),
        flows_(static_cast<size_t>(options.ranks) * options.ranks),
        ranks_(options.ranks),
        clock_(std::make_shared<SharedClock>()) {
    for (RankState& rank : ranks_) {
      rank.open_links = options.ranks - 1;
      rank.called_ns = NowNs();
    }
  }

  const std::shared_ptr<SharedClock>& clock() const { return clock_; }
  const SimOptions& options() const { return options_; }
  Flow& FlowOf(int from, int to) { return flows_[from * options_.ranks + to]; }

  // The lock for a call of `rank`, which is noted.
  std::unique_lock<std::mutex> Enter(int rank) {
    std::unique_lock lock(mutex_);
    ranks_[rank].called_ns = NowNs();
    return lock;
  }

  std::unique_lock<std::mutex> Lock() { return std::unique_lock(mutex_); }

  // --- under the lock ---

  void Acts(int rank) { ranks_[rank].idle_polls = 0; }

  void Send(int from, int to, Frame frame) {
    Acts(from);
    Flow& flow = FlowOf(from, to);
    const int64_t now_ns = clock_->NowNs();
    const auto bytes = static_cast<int64_t>(frame.data.size());
    flow.busy_until_ns =
        std::max(now_ns, flow.busy_until_ns) + bytes * 1000 / options_.bytes_per_us;
    flow.last_due_ns =
        std::max(flow.last_due_ns, flow.busy_until_ns + Latency(from, to, flow.number));
    frame.buffered = frame.header.kind == FrameKind::kPut || frame.data.size() <= kBufferedBytes;
    flow.waiting.push_back(std::move(frame));
    Schedule(flow.busy_until_ns, from, to, EventKind::kLeft);
    Schedule(flow.last_due_ns, from, to, EventKind::kArrived);
    ++flow.number;
  }

  void Close(int from, int to) {
    Flow& flow = FlowOf(from, to);
    if (flow.closed) return;
    flow.closed = true;
    --ranks_[from].open_links;
    // What has not left stays, for its memory may go away.
    flow.waiting.clear();
    const auto stays = std::find_if(flow.under_way.begin(), flow.under_way.end(),
                                    [](const Frame& frame) { return !frame.buffered; });
    flow.under_way.erase(stays, flow.under_way.end());
    flow.arrived = std::min(flow.arrived, flow.under_way.size());
    flow.last_due_ns =
        std::max(flow.last_due_ns + 1, clock_->NowNs() + Latency(from, to, flow.number));
    Schedule(flow.last_due_ns, from, to, EventKind::kEnd);
    ++flow.number;
    // What the peer sent cannot be received any more.
    FlowOf(to, from).expected.clear();
    changed_.notify_all();
  }

  // Gives what has arrived to who expects it.
  void Deliver(int from, int to) {
    Flow& flow = FlowOf(from, to);
    while (flow.arrived > 0 && !flow.expected.empty() && flow.failure.ok()) {
      Frame& frame = flow.under_way.front();
      const auto [expected, buffer] = flow.expected.front();
      flow.failure = CheckFrame(frame.header, expected);
      if (!flow.failure.ok()) break;
      const std::span<const std::byte> data = frame.buffered ? frame.copy : frame.data;
      if (!buffer.empty() && !data.empty()) std::memcpy(buffer.data(), data.data(), buffer.size());
      const bool put = expected.kind == FrameKind::kPut;
      uint64_t& received = put ? flow.puts_received : flow.messages_received;
      (put ? flow.put_tags : flow.message_tags)[received++ % kPutsAhead] = frame.header.tag;
      if (!frame.buffered) {
        ++flow.messages_left;
        News(from);
      }
      flow.under_way.pop_front();
      flow.expected.pop_front();
      --flow.arrived;
      News(to);
    }
    const auto ahead = std::count_if(
        flow.under_way.begin(), flow.under_way.begin() + static_cast<std::ptrdiff_t>(flow.arrived),
        [](const Frame& frame) { return frame.header.kind == FrameKind::kPut; });
    if (static_cast<uint64_t>(ahead) > kPutsAhead && flow.failure.ok()) {
      flow.failure = PeerLostError("is %d puts ahead: the ranks are out of step", ahead);
      News(to);
    }
  }

  // False when the rank waits for others to go on.
  bool PolledInVain(int rank) {
    ++ranks_[rank].idle_polls;
    AdvanceWhileAllWait();
    return options_.driven || ranks_[rank].idle_polls < kIdlePolls;
  }

  SimEvent Advance(int64_t until_ns) {
    if (events_.empty() || std::get<0>(*events_.begin()) > until_ns) {
      clock_->Set(std::max(until_ns, clock_->NowNs()));
      return {};
    }
    return NextEvent();
  }

  void Sleep(int rank, int64_t timeout_us, std::unique_lock<std::mutex>* lock) {
    RankState& state = ranks_[rank];
    state.sleeps = true;
    state.news = false;
    AdvanceWhileAllWait();
    // In slices, because another rank may stall, which nobody reports.
    const int64_t end_ns = NowNs() + timeout_us * 1000;
    while (!state.news && NowNs() < end_ns) {
      const int64_t left_us = (end_ns - NowNs()) / 1000 + 1;
      changed_.wait_for(*lock, std::chrono::microseconds(std::min<int64_t>(left_us, 10'000)));
      AdvanceWhileAllWait();
    }
    state.sleeps = false;
  }

 private:
  // Due time, then a draw by the seed, then who: no two events are equal.
  using Key = std::tuple<int64_t, uint64_t, int, int, uint64_t, EventKind>;

  uint64_t Draw(int from, int to, uint64_t number) const {
    const uint64_t flow = MixBits(options_.seed + 1) + static_cast<uint64_t>(from * 64 + to);
    return MixBits(MixBits(flow) + kGoldenGamma * number);
  }
  int64_t Latency(int from, int to, uint64_t number) const {
    const uint64_t draw = Draw(from, to, number);
    const auto jitter_ns =
        static_cast<int64_t>(static_cast<double>(options_.latency_ns) * options_.jitter);
    const int64_t usual =
        options_.latency_ns + static_cast<int64_t>(draw % 1024) * jitter_ns / 1024;
    return draw >> 32 & 31 || !options_.stragglers ? usual : 20 * usual;
  }
  void Schedule(int64_t due_ns, int from, int to, EventKind kind) {
    const uint64_t number = FlowOf(from, to).number;
    events_.insert({due_ns, Draw(to, from, number), from, to, number, kind});
  }

  bool Waits(RankState* rank) const {
    if (rank->open_links == 0 || rank->sleeps || rank->idle_polls >= kIdlePolls) return true;
    return NowNs() - rank->called_ns > options_.stall_ms * 1'000'000;
  }

  void AdvanceWhileAllWait() {
    while (!options_.driven && !events_.empty() &&
           std::all_of(ranks_.begin(), ranks_.end(), [&](RankState& rank) { return Waits(&rank); }))
      (void)NextEvent();
  }

  SimEvent NextEvent() {
    const auto [due_ns, draw, from, to, number, kind] = *events_.begin();
    events_.erase(events_.begin());
    clock_->Set(std::max(due_ns, clock_->NowNs()));
    Happen(from, to, kind);
    return {true, kind == EventKind::kArrived, from, to};
  }

  void Happen(int from, int to, EventKind kind) {
    Flow& flow = FlowOf(from, to);
    if (kind == EventKind::kEnd) {
      flow.end_seen = true;
      News(to);
    } else if (kind == EventKind::kArrived) {
      if (flow.under_way.size() <= flow.arrived) return;  // the sender closed before it left
      ++flow.arrived;
      Deliver(from, to);
    } else if (!flow.waiting.empty()) {
      Frame frame = std::move(flow.waiting.front());
      flow.waiting.pop_front();
      if (frame.buffered) {
        const bool put = frame.header.kind == FrameKind::kPut;
        if (!(put && options_.in_place)) frame.copy.assign(frame.data.begin(), frame.data.end());
        ++(put ? flow.puts_left : flow.messages_left);
        News(from);
      }
      flow.under_way.push_back(std::move(frame));
    }
  }

  void News(int rank) {
    ranks_[rank].idle_polls = 0;
    ranks_[rank].news = true;
    changed_.notify_all();
  }

  const SimOptions options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Flow> flows_;
  std::vector<RankState> ranks_;
  std::set<Key> events_;
  std::shared_ptr<SharedClock> clock_;
};

class SimLink final : public Link {
 public:
  SimLink(std::shared_ptr<Network> network, int rank, int peer, std::span<std::byte> window,
          Window view)
      : network_(std::move(network)),
        rank_(rank),
        peer_(peer),
        window_(window),
        view_(std::move(view)) {}
  ~SimLink() override { Close(); }

  const LinkTraits& traits() const override {
    static constexpr LinkTraits kCopies = {
        .name = "sim", .detects_peer_death = true, .put_copies = true, .puts_need_polls = true};
    static constexpr LinkTraits kInPlace = {
        .name = "sim", .detects_peer_death = true, .put_copies = false, .puts_need_polls = true};
    return network_->options().in_place ? kInPlace : kCopies;
  }

  std::span<const std::byte> view() const override { return view_.bytes(); }
  Status Put(size_t offset, size_t bytes, uint32_t tag) override {
    LOCKSTEP_CHECK(offset <= window_.size() && bytes <= window_.size() - offset);
    return Send({FrameKind::kPut, tag, offset, bytes}, window_.subspan(offset, bytes));
  }
  Status Expect(size_t offset, size_t bytes) override {
    LOCKSTEP_CHECK(offset <= window_.size() && bytes <= window_.size() - offset);
    const bool in_place = network_->options().in_place;
    return Receive({FrameKind::kPut, 0, offset, bytes},
                   in_place ? std::span<std::byte>() : view_.bytes().subspan(offset, bytes));
  }
  uint32_t put_tag(uint64_t number) const override {
    const auto lock = network_->Enter(rank_);
    return network_->FlowOf(peer_, rank_).put_tags[number % kPutsAhead];
  }

  Status PostSend(std::span<const std::byte> data, uint32_t tag) override {
    return Send({FrameKind::kMessage, tag, 0, data.size()}, data);
  }
  Status PostReceive(std::span<std::byte> buffer) override {
    return Receive({FrameKind::kMessage, 0, 0, buffer.size()}, buffer);
  }
  uint32_t message_tag(uint64_t number) const override {
    const auto lock = network_->Enter(rank_);
    return network_->FlowOf(peer_, rank_).message_tags[number % kPutsAhead];
  }

  StatusOr<LinkProgress> Poll() override {
    auto lock = network_->Enter(rank_);
    const Flow& out = network_->FlowOf(rank_, peer_);
    const Flow& in = network_->FlowOf(peer_, rank_);
    if (out.closed) return ConnectionClosed();
    if (!in.failure.ok()) return in.failure;
    const LinkProgress progress{out.messages_left, in.messages_received, out.puts_left,
                                in.puts_received};
    const bool news = progress.sends != told_.sends || progress.receives != told_.receives ||
                      progress.puts != told_.puts || progress.arrivals != told_.arrivals;
    told_ = progress;
    if (news) {
      network_->Acts(rank_);
      return progress;
    }
    const bool pending = !in.expected.empty() || progress.sends + progress.puts < asked_;
    if (in.end_seen && pending) return ConnectionClosed();
    if (network_->PolledInVain(rank_)) return progress;
    // Until something happens the others need the core more.
    lock.unlock();
    std::this_thread::yield();
    return progress;
  }

  void WaitReadable(int64_t timeout_us) override {
    auto lock = network_->Enter(rank_);
    if (!network_->FlowOf(rank_, peer_).closed) network_->Sleep(rank_, timeout_us, &lock);
  }
  void Close() override {
    const auto lock = network_->Enter(rank_);
    network_->Close(rank_, peer_);
  }

 private:
  Status Send(const FrameHeader& header, std::span<const std::byte> data) {
    const auto lock = network_->Enter(rank_);
    if (network_->FlowOf(rank_, peer_).closed) return ConnectionClosed();
    ++asked_;
    network_->Send(rank_, peer_, {.header = header, .data = data});
    return OkStatus();
  }
  Status Receive(const FrameHeader& expected, std::span<std::byte> buffer) {
    const auto lock = network_->Enter(rank_);
    if (network_->FlowOf(rank_, peer_).closed) return ConnectionClosed();
    network_->Acts(rank_);
    network_->FlowOf(peer_, rank_).expected.push_back({expected, buffer});
    network_->Deliver(peer_, rank_);
    return OkStatus();
  }

  const std::shared_ptr<Network> network_;
  const int rank_, peer_;
  const std::span<std::byte> window_;
  const Window view_;  // the peer's window or a copy of it
  LinkProgress told_;
  uint64_t asked_ = 0;  // puts and sends
};

// A mapping of its own: the peer may be gone before this side has read it.
StatusOr<Window> ViewOf(const Window& window, const SimOptions& options) {
  if (!options.in_place) return Window::Allocate(options.window_bytes);
  return Window::Map(UniqueFd(dup(window.descriptor())), options.window_bytes);
}

}  // namespace

StatusOr<SimNetwork> MakeSimNetwork(const SimOptions& options) {
  LOCKSTEP_CHECK(options.ranks > 0 && options.latency_ns > 0 && options.bytes_per_us > 0);
  LOCKSTEP_CHECK(options.jitter >= 0 && options.jitter <= 100);
  const auto network = std::make_shared<Network>(options);
  SimNetwork result;
  result.clock = network->clock();
  result.advance = [network](int64_t until_ns) {
    const std::unique_lock lock = network->Lock();
    return network->Advance(until_ns);
  };
  for (int rank = 0; rank < options.ranks; ++rank) {
    Mesh mesh;
    LOCKSTEP_ASSIGN_OR_RETURN(mesh.window, options.in_place
                                               ? Window::Share(options.window_bytes)
                                               : Window::Allocate(options.window_bytes));
    result.meshes.push_back(std::move(mesh));
  }
  for (int rank = 0; rank < options.ranks; ++rank) {
    Mesh& mesh = result.meshes[rank];
    for (int peer = 0; peer < options.ranks; ++peer) {
      if (peer == rank) {
        mesh.links.push_back(nullptr);
        continue;
      }
      LOCKSTEP_ASSIGN_OR_RETURN(Window view, ViewOf(result.meshes[peer].window, options));
      mesh.links.push_back(
          std::make_unique<SimLink>(network, rank, peer, mesh.window.bytes(), std::move(view)));
    }
  }
  return result;
}

}  // namespace lockstep
