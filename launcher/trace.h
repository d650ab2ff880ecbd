// A trace: when requests come and how long they are, without what they say. `lockstep simulate` and
// load scripts take the same ones. A line of the file is one request as JSON:
//   {"at_s": 0.5, "prompt_tokens": 512, "output_tokens": 128}
// and, if wanted, "prefix_group": 3 with "prefix_tokens": 400 (the first 400 tokens of the prompt
// are those of all requests of that group) and "user": "a".
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct TraceRequest {
  double at_s = 0;  // since the trace began; never before the line above
  int64_t prompt_tokens = 1;
  int64_t output_tokens = 1;
  int64_t prefix_group = -1;  // -1: none
  int64_t prefix_tokens = 0;  // at most prompt_tokens
  std::string user;

  bool operator==(const TraceRequest&) const = default;
};

// Empty lines are passed over. An error has the line and what is wrong with it; `name` stands for
// the file.
StatusOr<std::vector<TraceRequest>> ParseTrace(std::string_view text, const std::string& name);
StatusOr<std::vector<TraceRequest>> ReadTrace(const std::string& path);
// What ParseTrace reads: times to the microsecond.
std::string TraceText(const std::vector<TraceRequest>& trace);

// The prompt of request `number` of a trace, the same for everybody: `prompt_tokens` ids below
// `vocab_size`, of which the first `prefix_tokens` are the group's.
std::vector<int32_t> PromptOf(const TraceRequest& request, uint64_t number, uint64_t seed,
                              int64_t vocab_size);

// Lengths around a mean: log-normal, or always the mean where `spread` (the standard deviation of
// the logarithm) is 0; at least 1 and at most `most`.
struct TraceLengths {
  double mean = 512;
  double spread = 0;
  int64_t most = 1 << 20;
};

struct TraceShape {
  uint64_t seed = 1;
  double rate = 1;  // requests a second; their gaps are exponential (a Poisson process)
  double duration_s = 60;
  // The rate goes with the hour, from a fifth of it at 3 to 1.8 times it at 15: a day has as many.
  bool day = false;
  TraceLengths prompt, output;
  int64_t prefix_groups = 0;  // 0: prompts have nothing in common
  int64_t prefix_tokens = 0;  // that a group's prompts begin with, and that come before `prompt`
  int64_t users = 0;          // that they are of, as "0", "1", ...; 0: nobody's
};

// The same shape gives the same trace.
std::vector<TraceRequest> MakeTrace(const TraceShape& shape);

}  // namespace lockstep
