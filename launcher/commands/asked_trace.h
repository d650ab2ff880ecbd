// The trace that --trace names, or that --rate and what goes with it describe.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/trace.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"

namespace lockstep {

struct AskedTrace {
  std::vector<TraceRequest> requests;
  std::string name;  // the file, or how it was made
};

// One that is made fits a context of `max_model_len` tokens, and is written to --out.
StatusOr<AskedTrace> FindTrace(const Options& options, uint64_t seed, int64_t max_model_len);

}  // namespace lockstep
