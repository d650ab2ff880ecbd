// What `lockstep bench steps --json` printed, perhaps on another machine: the figures of one way of
// dividing a model, for `lockstep bench modes`.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

// Microseconds per token on one rank.
struct RankTime {
  double compute = 0;   // in ops
  double exchange = 0;  // in exchanges and sending, without waits
  double waiting = 0;   // for the parts or rows of others, and until the own parts have left
  double rest = 0;
};

struct BestToken {
  int64_t token = 0;
  double margin = 0;  // to the second best, in standard deviations of the row's logits
};

struct ModeTest {
  std::string test;  // decode, prefill
  int64_t tokens = 0;
  int64_t added_latency_us = 0;
  std::vector<double> tokens_per_s;  // one per repetition, at least one
  double share = 0;  // of the memory's bandwidth (decode) or of the peak of arithmetic (prefill)
  std::optional<double> wire_bytes;  // per token, of all ranks; nothing where they are not counted
  std::vector<RankTime> ranks;       // at least one
  std::vector<BestToken> best;       // of the warm-up
};

struct ModeReport {
  std::string kernels;
  int64_t threads = 0;     // of a rank
  double gb_per_s = 0;     // that all ranks read from memory
  double logit_error = 0;  // as BenchReport has it
  std::vector<ModeTest> tests;
};

// Everything is checked: numbers are finite and not negative.
StatusOr<ModeReport> ParseModeReport(std::string_view text);

}  // namespace lockstep
