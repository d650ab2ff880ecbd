#include "runtime/engine/cluster_watch.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "runtime/base/clock.h"

namespace lockstep {
namespace {

constexpr auto kPeriod = std::chrono::seconds(1);
constexpr size_t kNowSamples = 5;
constexpr size_t kMinuteSamples = 60;
constexpr size_t kDecodeSamples = 10;

double SecondsOf(int64_t ns) { return static_cast<double>(ns) * 1e-9; }

// Of a counter that begins anew with a new group.
double Grown(uint64_t from, uint64_t to) { return to > from ? static_cast<double>(to - from) : 0; }

double RateOf(const ClusterSample& from, const ClusterSample& to, uint64_t EngineCounts::*tokens) {
  const double seconds = SecondsOf(to.at_ns - from.at_ns);
  return seconds > 0 ? Grown(from.counts.*tokens, to.counts.*tokens) / seconds : 0;
}

// Per decode step of the rank itself: its heartbeat and the engine's count may be of other moments.
RankTimes TimesOf(const RankReport& from, const RankReport& to, double step) {
  RankTimes times;
  const double steps = Grown(from.steps, to.steps);
  if (steps == 0) return times;
  times.compute = Grown(from.compute_ns, to.compute_ns) / steps * 1e-9;
  times.exchange = Grown(from.exchange_ns, to.exchange_ns) / steps * 1e-9;
  times.read_bytes = Grown(from.read_bytes, to.read_bytes) / steps;
  times.rest = std::max(step - times.compute - times.exchange, 0.0);
  return times;
}

}  // namespace

void ClusterHistory::Add(ClusterSample sample) {
  samples_.push_back(std::move(sample));
  if (samples_.size() > kSamples) samples_.pop_front();
}

void ClusterHistory::Describe(ClusterView* view) const {
  if (samples_.empty()) return;
  view->generated = RatesOf(&EngineCounts::generation_tokens);
  view->prompt = RatesOf(&EngineCounts::prompt_tokens);
  for (size_t i = 1; i < samples_.size(); ++i)
    view->per_second.push_back(
        RateOf(samples_[i - 1], samples_[i], &EngineCounts::generation_tokens));
  view->decode = Decode();
}

Rates ClusterHistory::RatesOf(uint64_t EngineCounts::*tokens) const {
  const size_t last = samples_.size() - 1;
  const auto since = [&](size_t samples) {
    return RateOf(samples_[last - std::min(samples, last)], samples_[last], tokens);
  };
  return {since(kNowSamples), since(kMinuteSamples), since(last)};
}

std::optional<DecodeTimes> ClusterHistory::Decode() const {
  size_t end = samples_.size() - 1;
  while (end > 0 && samples_[end].counts.decode_steps == samples_[end - 1].counts.decode_steps)
    --end;
  if (end == 0) return std::nullopt;
  const size_t begin = end - std::min(end, kDecodeSamples);
  const ClusterSample& from = samples_[begin];
  const ClusterSample& engine = samples_[end];
  // What the other ranks counted comes with their next heartbeats.
  const ClusterSample& to = samples_[std::min(end + 1, samples_.size() - 1)];
  const double steps = Grown(from.counts.decode_steps, engine.counts.decode_steps);
  if (steps == 0) return std::nullopt;
  DecodeTimes decode;
  decode.step = Grown(from.counts.decode_ns, engine.counts.decode_ns) / steps * 1e-9;
  decode.tokens = Grown(from.counts.decode_tokens, engine.counts.decode_tokens) / steps;
  decode.age = SecondsOf(samples_.back().at_ns - engine.at_ns);
  double most = 0;
  for (size_t r = 0; r < to.ranks.size(); ++r) {
    // A rank that joined since counts from nothing.
    const RankReport& now = to.ranks[r].news.report;
    RankReport before;
    if (r < from.ranks.size() && from.ranks[r].news.report.steps <= now.steps)
      before = from.ranks[r].news.report;
    decode.ranks.push_back(TimesOf(before, now, decode.step));
    most = std::max(most, decode.ranks.back().exchange);
  }
  for (RankTimes& times : decode.ranks) times.skew = most - times.exchange;
  const auto longest =
      std::max_element(decode.ranks.begin(), decode.ranks.end(),
                       [](const RankTimes& a, const RankTimes& b) { return a.skew < b.skew; });
  if (decode.ranks.size() > 1 && most > 0)
    decode.waited_for = static_cast<int>(longest - decode.ranks.begin());
  return decode;
}

ClusterWatch::ClusterWatch(const Engine& engine) : engine_(engine), began_ns_(NowNs()) {
  thread_ = std::thread([this] { Run(); });
}

ClusterWatch::~ClusterWatch() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    stopped_.notify_all();
  }
  thread_.join();
}

void ClusterWatch::SetSource(Source source) {
  const std::lock_guard lock(mutex_);
  source_ = std::move(source);
}

ClusterSample ClusterWatch::SampleLocked() const {
  ClusterSample sample;
  sample.at_ns = NowNs();
  sample.counts = engine_.counts();
  if (source_) sample.ranks = source_();
  return sample;
}

ClusterView ClusterWatch::View() const {
  ClusterView view;
  view.readiness = engine_.Readiness();
  view.circuit_open = circuit_open_;
  view.uptime = SecondsOf(NowNs() - began_ns_);
  view.load = engine_.load();
  const std::lock_guard lock(mutex_);
  ClusterSample now = SampleLocked();
  view.counts = now.counts;
  view.ranks = std::move(now.ranks);
  history_.Describe(&view);
  return view;
}

void ClusterWatch::Run() {
  std::unique_lock lock(mutex_);
  while (!stop_) {
    history_.Add(SampleLocked());
    stopped_.wait_for(lock, kPeriod, [this] { return stop_; });
  }
}

}  // namespace lockstep
