#include "launcher/simulate/message_sums.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "runtime/base/check.h"

namespace lockstep {
namespace {

constexpr int64_t kNever = std::numeric_limits<int64_t>::max();

int64_t Nanoseconds(double seconds) { return std::llround(seconds * 1e9); }

}  // namespace

MessageSums::MessageSums(const MessageOptions& options, SimNetwork network)
    : options_(options), network_(std::move(network)), ranks_(static_cast<size_t>(options.ranks)) {
  for (Rank& rank : ranks_) {
    rank.seen.resize(ranks_.size());
    rank.before.resize(ranks_.size());
  }
}

StatusOr<MessageSums> MessageSums::Create(const MessageOptions& options) {
  LOCKSTEP_CHECK(options.ranks >= 2);
  SimOptions sim;
  sim.ranks = options.ranks;
  sim.window_bytes = std::max<size_t>(options.most_bytes, 1);
  sim.seed = options.seed;
  sim.in_place = true;  // bytes have sizes, and nobody reads them
  sim.driven = true;
  sim.jitter = kJitter;
  sim.stragglers = false;
  // Jitter is drawn evenly, so that this has the mean that is wanted.
  sim.latency_ns = std::max<int64_t>(1, Nanoseconds(options.latency_us * 1e-6 / (1 + kJitter / 2)));
  // A rank writes to all others at the same time, and they share what it sends.
  sim.bytes_per_us =
      std::max<int64_t>(1, std::llround(options.gb_per_s * 1e3 / (options.ranks - 1)));
  LOCKSTEP_ASSIGN_OR_RETURN(SimNetwork network, MakeSimNetwork(sim));
  return MessageSums(options, std::move(network));
}

MessageSums::Round MessageSums::PlanRound(const std::vector<double>& compute_s, int64_t sums,
                                          double bytes) const {
  const double ranks = options_.ranks;
  const double latency = options_.latency_us * 1e-6, byte = 1e-9 / options_.gb_per_s;
  const bool direct =
      latency + (ranks - 1) * bytes * byte <= 2 * latency + 2 * (ranks - 1) / ranks * bytes * byte;
  Round round;
  round.hops_a_sum = direct ? 1 : 2;
  round.hops = sums * round.hops_a_sum;
  const double part = direct ? bytes : bytes / ranks;
  round.bytes = std::min(static_cast<size_t>(part), std::max<size_t>(options_.most_bytes, 1));
  for (const double seconds : compute_s)
    round.compute_ns.push_back(Nanoseconds(seconds / static_cast<double>(sums)));
  return round;
}

// Takes in what has come from `peer`.
Status MessageSums::Look(int rank, int peer) {
  Rank& me = ranks_[static_cast<size_t>(rank)];
  const auto from = static_cast<size_t>(peer);
  LOCKSTEP_ASSIGN_OR_RETURN(const LinkProgress progress,
                            network_.meshes[static_cast<size_t>(rank)].links[from]->Poll());
  me.seen[from] = progress.arrivals - me.before[from];
  return OkStatus();
}

bool MessageSums::HasAll(int rank) const {
  const Rank& me = ranks_[static_cast<size_t>(rank)];
  for (size_t peer = 0; peer < ranks_.size(); ++peer) {
    if (static_cast<int>(peer) != rank && me.seen[peer] <= static_cast<uint64_t>(me.hop))
      return false;
  }
  return true;
}

Status MessageSums::Send(int rank, const Round& round) {
  for (int peer = 0; peer < options_.ranks; ++peer) {
    if (peer == rank) continue;
    Link& link = *network_.meshes[static_cast<size_t>(rank)].links[static_cast<size_t>(peer)];
    LOCKSTEP_RETURN_IF_ERROR(link.Expect(0, round.bytes));
    LOCKSTEP_RETURN_IF_ERROR(link.Put(0, round.bytes, 0));
    LOCKSTEP_RETURN_IF_ERROR(Look(rank, peer));
    ++messages_;
  }
  ranks_[static_cast<size_t>(rank)].waits = true;
  return OkStatus();
}

StatusOr<double> MessageSums::Seconds(const std::vector<double>& compute_s, int64_t sums,
                                      double bytes) {
  LOCKSTEP_CHECK(sums > 0 && compute_s.size() == ranks_.size());
  const Round round = PlanRound(compute_s, sums, bytes);
  const int64_t begin_ns = network_.clock->NowNs();
  std::set<std::pair<int64_t, int>> computing;  // until when, and who
  for (int rank = 0; rank < options_.ranks; ++rank) {
    Rank& one = ranks_[static_cast<size_t>(rank)];
    for (size_t peer = 0; peer < ranks_.size(); ++peer)
      one.before[peer] += std::exchange(one.seen[peer], 0);
    one.hop = 0;
    computing.insert({begin_ns + round.compute_ns[static_cast<size_t>(rank)], rank});
  }
  int waiting_or_computing = options_.ranks;
  while (waiting_or_computing > 0) {
    const int64_t until_ns = computing.empty() ? kNever : computing.begin()->first;
    const SimEvent event = network_.advance(until_ns);
    int rank = event.to;
    if (event.happened) {
      if (!event.arrived) continue;
      LOCKSTEP_RETURN_IF_ERROR(Look(rank, event.from));
    } else {
      LOCKSTEP_CHECK(!computing.empty());
      rank = computing.begin()->second;
      computing.erase(computing.begin());
      LOCKSTEP_RETURN_IF_ERROR(Send(rank, round));
    }
    Rank& me = ranks_[static_cast<size_t>(rank)];
    if (!me.waits || !HasAll(rank)) continue;
    me.waits = false;
    if (++me.hop == round.hops) {
      --waiting_or_computing;
      continue;
    }
    const bool begins = me.hop % round.hops_a_sum == 0;
    const int64_t compute_ns = begins ? round.compute_ns[static_cast<size_t>(rank)] : 0;
    computing.insert({network_.clock->NowNs() + compute_ns, rank});
  }
  return static_cast<double>(network_.clock->NowNs() - begin_ns) * 1e-9;
}

}  // namespace lockstep
