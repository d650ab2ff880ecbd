// Options of requests that come to a server: `lockstep simulate` and `lockstep bench serve`.
#include "runtime/base/option_parts.h"

namespace lockstep {
namespace {

using O = Options;

}  // namespace

std::vector<OptionSpec> TraceOptions() {
  return {
      {"trace", &O::trace,
       "file of requests, one a line as JSON: at_s, prompt_tokens, output_tokens, and if wanted "
       "prefix_group, prefix_tokens, user; default: one is made from the following"},
      {"rate", &O::rate, "requests a second, on average (Poisson)", {}, 1e-6, 1e6},
      {"duration-s", &O::duration_s, "how long requests come", {}, 1e-3, 1e9},
      {"day-curve", &O::day_curve,
       "the rate goes with the hour: from a fifth of it at 3 to 1.8 times it at 15"},
      {"output-tokens", &O::output_tokens, "mean length of answers", {}, 1, 16'777'216},
      {"length-spread",
       &O::length_spread,
       "standard deviation of the logarithms of prompts' and answers' lengths; 0: all alike",
       {},
       0,
       5},
      {"prefix-groups",
       &O::prefix_groups,
       "groups whose prompts begin alike; 0: all differ",
       {},
       0,
       1e9},
      {"prefix-tokens",
       &O::prefix_tokens,
       "tokens of that beginning, before those of --prompt-tokens",
       {},
       0,
       16'777'216},
      {"replicas", &O::replicas, "clusters behind one router, all alike", {}, 1, 4096},
      {"router",
       &O::router,
       "who gets a request: the replica with the fewest tokens to do, or the one that has its "
       "group",
       {"least", "prefix"}}};
}

std::vector<OptionSpec> BenchServeOptions() {
  return {{"url", &O::url, "server that bench serve loads: http:// or https://, host and port"},
          {"tls-ca", &O::tls_ca,
           "PEM file of who may have signed its certificate; default: whom the system trusts"},
          {"vocab-size",
           &O::vocab_size,
           "ids of its prompts' tokens are below this; default: what the server says",
           {},
           1,
           16'777'216},
          {"request-timeout-ms",
           &O::request_timeout_ms,
           "how long one of its requests may take",
           {},
           1,
           86'400'000},
          {"slo-ttft-ms",
           &O::slo_ttft_ms,
           "its answers are good if the first token came within this; default: any time",
           {},
           0.001,
           1e9},
          {"slo-itl-ms",
           &O::slo_itl_ms,
           "and if the time between tokens, on average of the answer, was no longer than this",
           {},
           0.001,
           1e9}};
}

}  // namespace lockstep
