#include "launcher/commands/asked_trace.h"

#include <algorithm>
#include <span>

#include "absl/strings/str_format.h"
#include "launcher/commands/bench.h"
#include "runtime/base/file.h"

namespace lockstep {
namespace {

constexpr int64_t kMostTokens = 16'777'216;
constexpr double kMostRequests = 5e7;

StatusOr<TraceShape> ShapeFromOptions(const Options& options, uint64_t seed,
                                      int64_t max_model_len) {
  TraceShape shape;
  shape.seed = seed;
  shape.rate = options.rate;
  shape.duration_s = options.duration_s;
  shape.day = options.day_curve;
  if (shape.rate * shape.duration_s > kMostRequests) {
    return UsageError("--rate %g for --duration-s %g: more than %g requests; lower one", shape.rate,
                      shape.duration_s, kMostRequests);
  }
  if (!options.prompt_tokens.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<int64_t> counts,
                              ParseCounts(options.prompt_tokens, "--prompt-tokens", kMostTokens));
    if (counts.size() > 1) return UsageError("--prompt-tokens takes one number here, the mean");
    shape.prompt.mean = static_cast<double>(counts.front());
  }
  shape.output.mean = static_cast<double>(options.output_tokens);
  shape.prompt.spread = shape.output.spread = options.length_spread;
  if ((options.prefix_groups > 0) != (options.prefix_tokens > 0))
    return UsageError("--prefix-groups and --prefix-tokens go together");
  shape.prefix_groups = options.prefix_groups;
  shape.prefix_tokens = options.prefix_tokens;
  // What is drawn fits the context.
  shape.output.most = std::max<int64_t>(1, max_model_len / 4);
  shape.prompt.most = max_model_len - shape.output.most - shape.prefix_tokens;
  if (shape.prompt.most < 1) {
    return UsageError("--prefix-tokens %d leave no room in a context of %d", options.prefix_tokens,
                      max_model_len);
  }
  return shape;
}

}  // namespace

StatusOr<AskedTrace> FindTrace(const Options& options, uint64_t seed, int64_t max_model_len) {
  AskedTrace trace;
  if (!options.trace.empty()) {
    trace.name = options.trace;
    LOCKSTEP_ASSIGN_OR_RETURN(trace.requests, ReadTrace(options.trace));
    return trace;
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const TraceShape shape, ShapeFromOptions(options, seed, max_model_len));
  trace.requests = MakeTrace(shape);
  if (trace.requests.empty())
    return UsageError("no request comes in %g s; raise --duration-s or --rate", shape.duration_s);
  trace.name = absl::StrFormat(
      "made of seed %d: %g requests/s for %g s%s, prompts of %g and answers of "
      "%g tokens on average",
      seed, shape.rate, shape.duration_s, shape.day ? " by the hour" : "",
      shape.prompt.mean + static_cast<double>(shape.prefix_tokens), shape.output.mean);
  if (!options.out.empty()) {
    const std::string text = TraceText(trace.requests);
    LOCKSTEP_RETURN_IF_ERROR(
        WriteFileAtomically(options.out, std::as_bytes(std::span(text.data(), text.size()))));
  }
  return trace;
}

}  // namespace lockstep
