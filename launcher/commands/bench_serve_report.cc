#include "launcher/commands/bench_serve_report.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "launcher/commands/traffic_report.h"
#include "launcher/node_answer.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

Json SloJson(double seconds) { return seconds > 0 ? Json(seconds) : Json(nullptr); }

Json RefusalsJson(const LoadResult& result) {
  Json json = Json::object();
  for (const auto& [status, refusals] : result.refusals) {
    json[std::to_string(status)] = {{"count", refusals.count},
                                    {"with_retry_after", refusals.with_retry_after},
                                    {"first", refusals.first},
                                    {"retry_after_s", PercentilesJson(refusals.retry_after_s)}};
  }
  return json;
}

Json FailuresJson(const LoadResult& result) {
  Json json = Json::array();
  for (const LoadFailure& one : result.failures)
    json.push_back({{"cause", one.cause}, {"count", one.count}, {"first", one.first}});
  return json;
}

Json ReportJson(const LoadReport& report) {
  const LoadResult& result = report.result;
  const LoadRunOptions& options = report.options;
  Json json = {{"url", report.url},
               {"model", options.model.model},
               {"trace", report.trace},
               {"seed", options.seed},
               {"vocab_size", options.model.vocab_size},
               {"stopped", result.stopped},
               {"seconds", result.seconds},
               {"offered_s", report.offered_s},
               {"trace_requests", report.trace_requests},
               {"requests", result.requests},
               {"completed", result.completed},
               {"rejected", result.rejected},
               {"refused", result.refused},
               {"failed", result.failed},
               {"unfinished", result.unfinished},
               {"too_short", result.too_short},
               {"prompt_tokens", result.prompt_tokens},
               {"cached_tokens", result.cached_tokens},
               {"output_tokens", result.output_tokens},
               {"events", result.events}};
  if (!result.refusal.empty()) json["refusal"] = result.refusal;
  json["tokens_per_s"] = Over(result.output_tokens, result.seconds);
  json["prompt_tokens_per_s"] = Over(result.prompt_tokens, result.seconds);
  json["requests_per_s"] = Over(result.completed, result.seconds);
  json["goodput"] = {{"slo_ttft_s", SloJson(options.slo_first_token_s)},
                     {"slo_inter_token_s", SloJson(options.slo_inter_token_s)},
                     {"requests", result.good},
                     {"requests_per_s", Over(result.good, result.seconds)},
                     {"part", Over(result.good, static_cast<double>(result.requests))}};
  json["ttft_s"] = PercentilesJson(result.first_token);
  json["inter_token_s"] = PercentilesJson(result.inter_token);
  json["queue_s"] = result.queue.count() > 0 ? PercentilesJson(result.queue) : Json(nullptr);
  json["end_to_end_s"] = PercentilesJson(result.end_to_end);
  json["cached_part"] = Over(result.cached_tokens, static_cast<double>(result.prompt_tokens));
  json["refusals"] = RefusalsJson(result);
  json["failures"] = FailuresJson(result);
  json["lag_s"] = PercentilesJson(result.lag);
  json["kept_schedule"] = report.kept_schedule();
  return json;
}

void PrintCounts(const LoadReport& report) {
  const LoadResult& result = report.result;
  const auto number = [](uint64_t count) { return static_cast<unsigned long long>(count); };
  std::printf(
      "%-13s %.1f s for %llu requests (the last was to come at %.1f s)%s: %llu answered, "
      "%llu turned away, %llu too long, %llu failed\n",
      "time", result.seconds, number(report.trace_requests), report.offered_s,
      result.stopped ? ", stopped" : "", number(result.completed), number(result.rejected),
      number(result.refused), number(result.failed));
  if (result.stopped) {
    std::printf("%-13s %llu requests were not sent, %llu had no end yet\n", "stopped",
                number(report.trace_requests - result.requests), number(result.unfinished));
  }
  for (const auto& [status, refusals] : result.refusals) {
    std::printf("%-13s %llu with %d, of which %llu say when to come again; first: %s\n",
                "turned away", number(refusals.count), status, number(refusals.with_retry_after),
                refusals.first.c_str());
  }
  if (!result.refusal.empty()) std::printf("%-13s %s\n", "too long", result.refusal.c_str());
  for (const LoadFailure& one : result.failures) {
    std::printf("%-13s %llu: %s%s%s\n", "failed", number(one.count), one.cause.c_str(),
                one.first.empty() ? "" : "; first: ", one.first.c_str());
  }
  if (result.too_short > 0) {
    std::printf("%-13s %llu answers have fewer tokens than were asked for\n", "too short",
                number(result.too_short));
  }
}

void PrintGoodput(const LoadReport& report) {
  const LoadRunOptions& options = report.options;
  if (options.slo_first_token_s <= 0 && options.slo_inter_token_s <= 0) return;
  std::string slos;
  if (options.slo_first_token_s > 0)
    slos = absl::StrFormat("%g s to the first token", options.slo_first_token_s);
  if (options.slo_inter_token_s > 0) {
    slos += absl::StrFormat("%s%g s between tokens", slos.empty() ? "" : " and ",
                            options.slo_inter_token_s);
  }
  const LoadResult& result = report.result;
  std::printf("%-13s %.3g requests/s, %.1f %% of all, within %s\n", "goodput",
              Over(result.good, result.seconds),
              100 * Over(result.good, static_cast<double>(result.requests)), slos.c_str());
}

void PrintTable(const LoadReport& report) {
  const LoadResult& result = report.result;
  std::printf("%s at %s\n", Printable(report.options.model.model, /*lines=*/false).c_str(),
              report.url.c_str());
  std::printf("%-13s %s\n", "trace", report.trace.c_str());
  PrintCounts(report);
  std::printf(
      "%-13s %.1f tokens/s, %.3g requests/s; %.1f prompt tokens/s, of which %.1f %% were "
      "in the prefix cache\n",
      "throughput", Over(result.output_tokens, result.seconds),
      Over(result.completed, result.seconds), Over(result.prompt_tokens, result.seconds),
      100 * Over(result.cached_tokens, static_cast<double>(result.prompt_tokens)));
  PrintGoodput(report);
  PrintPercentiles("first token", result.first_token);
  PrintPercentiles("inter token", result.inter_token);
  if (result.queue.count() > 0) {
    PrintPercentiles("queue", result.queue);
  } else {
    std::printf("%-13s the server does not say\n", "queue");
  }
  PrintPercentiles("end to end", result.end_to_end);
  PrintPercentiles("client's lag", result.lag);
}

}  // namespace

void PrintLoad(const LoadReport& report, const Options& options) {
  if (!options.json) return PrintTable(report);
  const Json json = ReportJson(report);
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

std::string FirstFailure(const LoadResult& result) {
  if (result.failures.empty()) return "";
  const LoadFailure& first = result.failures.front();
  return absl::StrFormat("%s: %d%s", first.cause, first.count,
                         first.first.empty() ? "" : " (" + first.first + ")");
}

}  // namespace lockstep
