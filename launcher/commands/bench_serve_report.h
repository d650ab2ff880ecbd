// What `lockstep bench serve` prints.
#pragma once

#include <string>

#include "launcher/load/load_run.h"
#include "runtime/base/options.h"

namespace lockstep {

// Requests that are sent later than this measure another load than was asked for. How late they
// are, most of the time, is below a millisecond.
inline constexpr double kLateS = 0.02;

struct LoadReport {
  std::string url;
  std::string trace;  // the file, or how it was made
  uint64_t trace_requests = 0;
  double offered_s = 0;  // when the last of them comes
  LoadRunOptions options;
  LoadResult result;

  // Whether the client was late by more than kLateS no oftener than once in a hundred requests.
  // Nor were there requests that it could not send.
  bool kept_schedule() const {
    return result.lag.At(0.99) <= kLateS && result.lag.count() >= result.requests;
  }
};

// One JSON object with --json, otherwise a table. What `lockstep simulate` prints under the same
// name means the same.
void PrintLoad(const LoadReport& report, const Options& options);

// "the connection broke: 3 (recv failure)", the first of them; empty: nothing failed.
std::string FirstFailure(const LoadResult& result);

}  // namespace lockstep
