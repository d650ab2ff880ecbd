// What tests/fuzz/trace_fuzz.cc runs on one input; a test replays the seeds through it.
#pragma once

#include <string_view>

#include "launcher/trace.h"
#include "runtime/base/check.h"

namespace lockstep {

// What is accepted is in order and within bounds, and is read the same from what is written of it.
inline void FuzzTrace(std::string_view input) {
  const StatusOr<std::vector<TraceRequest>> trace = ParseTrace(input, "fuzz");
  if (!trace.ok()) return;
  double before_s = 0;
  for (const TraceRequest& request : *trace) {
    LOCKSTEP_CHECK(request.at_s >= before_s && request.at_s <= 1e9);
    LOCKSTEP_CHECK(request.prompt_tokens >= 1 && request.output_tokens >= 1);
    LOCKSTEP_CHECK(request.prefix_tokens >= 0 && request.prefix_tokens <= request.prompt_tokens);
    before_s = request.at_s;
  }
  const std::string text = TraceText(*trace);
  const StatusOr<std::vector<TraceRequest>> again = ParseTrace(text, "again");
  LOCKSTEP_CHECK(again.ok() && TraceText(*again) == text);
}

}  // namespace lockstep
