// What an engine has done since it began, for whoever watches it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>

#include "runtime/decode/stop.h"

namespace lockstep {

// How often a time fell under each bound. Seconds.
struct TimeHistogram {
  static constexpr std::array<double, 20> kBounds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1,
                                                     0.25,  0.5,    1,     2.5,  5,     10,   20,
                                                     40,    80,     160,   320,  640,   2560};
  std::array<uint64_t, kBounds.size() + 1> counts{};  // of each bucket by itself; the last: above
  double sum = 0;

  void Add(double seconds) {
    const auto bucket = std::lower_bound(kBounds.begin(), kBounds.end(), seconds);
    ++counts[static_cast<size_t>(bucket - kBounds.begin())];
    sum += seconds;
  }
};

struct EngineCounts {
  uint64_t prompt_tokens = 0;  // of requests that gave a token
  uint64_t cached_tokens = 0;  // of these, that were there from an earlier request
  uint64_t generation_tokens = 0;
  uint64_t preemptions = 0;  // of sequences, for requests of better priority
  // Decode steps (StepPlan::IsDecode), as long as the loop was at them: with the plan, the samples
  // and what is published.
  uint64_t decode_steps = 0;
  uint64_t decode_tokens = 0;
  uint64_t decode_ns = 0;
  std::array<uint64_t, 5> finished{};    // requests, by FinishReason
  TimeHistogram time_to_first_token;     // from submission
  TimeHistogram inter_token;             // from one token of a request to its next
  TimeHistogram whole;                   // requests that ended in order, from submission
  TimeHistogram queue, prefill, decode;  // of the same; see Timings
};

}  // namespace lockstep
