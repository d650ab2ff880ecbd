// How long the exchanges of a step take when each of their messages travels through a simulated
// network (transport/sim.h), with the ranks' arithmetic between them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/base/status.h"
#include "transport/sim.h"

namespace lockstep {

struct MessageOptions {
  int ranks = 2;          // at least 2
  double latency_us = 1;  // of a message, on average
  double gb_per_s = 1;    // that a rank sends
  uint64_t seed = 1;
  size_t most_bytes = 0;  // of one sum
};

class MessageSums {
 public:
  // By which part of the shortest a message may take longer. lockstep doctor measures medians and
  // 99th percentiles; between machines that are idle otherwise they differ by about so much.
  static constexpr double kJitter = 0.2;

  static StatusOr<MessageSums> Create(const MessageOptions& options);

  // Seconds until all ranks have made `sums` sums of `bytes` each, where rank r computes
  // `compute_s[r]` / sums seconds before each of them: every rank puts to all others at once, or in
  // two rounds, of parts and of results, where that is the faster one without jitter.
  StatusOr<double> Seconds(const std::vector<double>& compute_s, int64_t sums, double bytes);
  // Messages so far.
  uint64_t messages() const { return messages_; }

 private:
  struct Rank {
    int64_t hop = 0;               // the exchange of messages that it computes for or is in
    bool waits = false;            // for messages of `hop`
    std::vector<uint64_t> seen;    // arrivals of this call, by peer
    std::vector<uint64_t> before;  // arrivals of earlier calls, by peer
  };
  struct Round {
    size_t bytes;  // of a message
    int64_t hops;
    int64_t hops_a_sum;
    std::vector<int64_t> compute_ns;  // before a sum, by rank
  };

  MessageSums(const MessageOptions& options, SimNetwork network);
  Round PlanRound(const std::vector<double>& compute_s, int64_t sums, double bytes) const;
  Status Send(int rank, const Round& round);
  Status Look(int rank, int peer);
  bool HasAll(int rank) const;

  MessageOptions options_;
  SimNetwork network_;
  std::vector<Rank> ranks_;
  uint64_t messages_ = 0;
};

}  // namespace lockstep
