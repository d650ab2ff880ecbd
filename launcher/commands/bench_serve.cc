// `lockstep bench serve`: what a running server gives under requests that come at their times.
#include <string>
#include <utility>

#include "launcher/commands/asked_trace.h"
#include "launcher/commands/bench.h"
#include "launcher/commands/bench_serve_report.h"
#include "launcher/load/load_run.h"
#include "launcher/process.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

constexpr uint64_t kMostCaBytes = uint64_t{16} << 20;

StatusOr<HttpStreamOptions> ServerFromOptions(const Options& options) {
  HttpStreamOptions server;
  LOCKSTEP_ASSIGN_OR_RETURN(server.server, ParseHttpUrl("--url", options.url));
  HttpPlace& place = server.server;
  if (!place.query.empty() || !place.file.empty())
    return UsageError("--url '%s': give the server's address, without a file or a query",
                      options.url);
  // What clients know as base URL.
  constexpr std::string_view kVersion = "/v1";
  if (place.directory.ends_with(kVersion))
    place.directory.resize(place.directory.size() - kVersion.size());
  if (!options.api_key_file.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(server.key, ReadApiKey(options.api_key_file));
  }
  if (options.tls_ca.empty()) return server;
  if (place.scheme != "https")
    return UsageError("--tls-ca is for https://, not for %s", options.url);
  if (const auto text = ReadTextFile(options.tls_ca, kMostCaBytes); !text.ok())
    return UsageError("--tls-ca: %s", MessageOf(text.status()));
  server.ca_file = options.tls_ca;
  return server;
}

// What is asked of the model, as the server or the options say.
StatusOr<ServedFacts> FindModel(const Options& options, const HttpStreamOptions& server) {
  LOCKSTEP_ASSIGN_OR_RETURN(ServedFacts facts, AskServer(server, options.model, Interrupted));
  if (options.vocab_size > 0) facts.vocab_size = options.vocab_size;
  if (options.max_model_len > 0) facts.max_model_len = options.max_model_len;
  if (facts.vocab_size == 0) {
    return UsageError(
        "%s does not say how many token ids there are; give --vocab-size, for GLM-4.7 151552",
        options.url);
  }
  if (facts.max_model_len == 0 && options.trace.empty()) {
    return UsageError(
        "%s does not say how long its context is; give --max-model-len, which the trace is to fit",
        options.url);
  }
  return facts;
}

Status Verdict(const LoadReport& report) {
  const LoadResult& result = report.result;
  if (!report.kept_schedule()) {
    log::Warning(
        "this client did not keep the schedule: requests were sent up to %.3g s late (99th "
        "percentile); the load was another one than asked for. Run it on another machine than the "
        "server's, or lower --rate",
        result.lag.At(0.99));
  }
  if (result.too_short > 0) {
    log::Warning(
        "%d answers have fewer tokens than were asked for: does the server know ignore_eos?",
        result.too_short);
  }
  if (result.completed > 0 || result.stopped) return OkStatus();
  const std::string failure = FirstFailure(result);
  return InternalError("no request was answered%s%s; %d were turned away, %d were too long",
                       failure.empty() ? "" : ": ", failure, result.rejected, result.refused);
}

}  // namespace

Status BenchServe(const Options& options) {
  const InterruptScope interrupts;
  LoadReport report;
  report.url = options.url;
  LoadRunOptions& load = report.options;
  LOCKSTEP_ASSIGN_OR_RETURN(load.server, ServerFromOptions(options));
  load.seed = static_cast<uint64_t>(options.seed.value_or(1));
  load.request_timeout_ms = options.request_timeout_ms;
  load.slo_first_token_s = options.slo_ttft_ms / 1000;
  load.slo_inter_token_s = options.slo_itl_ms / 1000;
  load.stop = Interrupted;
  LOCKSTEP_ASSIGN_OR_RETURN(load.model, FindModel(options, load.server));
  LOCKSTEP_ASSIGN_OR_RETURN(const AskedTrace trace,
                            FindTrace(options, load.seed, load.model.max_model_len));
  report.trace = trace.name;
  report.trace_requests = trace.requests.size();
  report.offered_s = trace.requests.back().at_s;
  log::Info("sending %d requests within %.0f s to %s", report.trace_requests, report.offered_s,
            options.url);
  report.result = RunLoad(trace.requests, load);
  PrintLoad(report, options);
  return Verdict(report);
}

}  // namespace lockstep
