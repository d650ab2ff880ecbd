// A trace sent to a server, open loop: every request at its time, whatever became of those before.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "launcher/load/completion.h"
#include "launcher/load/http_streams.h"
#include "launcher/percentiles.h"
#include "launcher/trace.h"
#include "runtime/base/status.h"

namespace lockstep {

struct LoadRunOptions {
  HttpStreamOptions server;
  ServedFacts model;
  uint64_t seed = 1;
  int64_t request_timeout_ms = 600'000;
  double slo_first_token_s = 0, slo_inter_token_s = 0;  // 0: none
  // Asked at least every 100 ms; true ends the run. May be empty.
  std::function<bool()> stop;
};

// Answers with a status that asks the client to come again.
struct Refusals {
  uint64_t count = 0, with_retry_after = 0;
  std::string first;          // what was said the first time
  Percentiles retry_after_s;  // of those with a number of seconds
};

struct LoadFailure {
  std::string cause;  // "the connection broke"
  uint64_t count = 0;
  std::string first;  // what was said the first time
};

// Times are from when a request was due, so that a late client cannot make a server look fast. What
// `lockstep simulate` gives under the same name means the same.
struct LoadResult {
  uint64_t requests = 0;    // that were due
  uint64_t completed = 0;   // to their end
  uint64_t rejected = 0;    // with 429 or 503
  uint64_t refused = 0;     // as longer than the context
  uint64_t failed = 0;      // otherwise
  uint64_t unfinished = 0;  // when the run was stopped
  uint64_t good = 0;        // completed with all tokens, within the SLOs
  uint64_t too_short = 0;   // completed with fewer tokens than were asked for
  uint64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;  // of completed ones
  uint64_t events = 0;  // with tokens, of these; fewer than tokens where several come together
  Percentiles first_token;
  Percentiles inter_token;  // where several tokens come together, evenly between events
  Percentiles end_to_end;
  Percentiles queue;                 // as the server says of completed ones; empty: it does not
  Percentiles lag;                   // from when a request was due to when this client sent it
  std::map<int, Refusals> refusals;  // by status
  std::string refusal;               // why the first of those was refused
  std::vector<LoadFailure> failures;
  double seconds = 0;  // from the beginning of the trace to the last end
  bool stopped = false;
};

// What the server says of `model` (empty: its first), or a sentence about why nothing can be sent.
// `stop` as above.
StatusOr<ServedFacts> AskServer(const HttpStreamOptions& server, const std::string& model,
                                const std::function<bool()>& stop);

LoadResult RunLoad(const std::vector<TraceRequest>& trace, const LoadRunOptions& options);

}  // namespace lockstep
