#include "launcher/commands/simulate_report.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_format.h"
#include "launcher/commands/traffic_report.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr double kBusy = 0.9;

Json CountsJson(const SimulatedTraffic& traffic) {
  return {{"requests", traffic.requests},
          {"completed", traffic.completed},
          {"rejected", traffic.rejected},
          {"refused", traffic.refused},
          {"prompt_tokens", traffic.prompt_tokens},
          {"cached_tokens", traffic.cached_tokens},
          {"output_tokens", traffic.output_tokens},
          {"preemptions", traffic.preemptions},
          {"steps", traffic.steps},
          {"rows", traffic.rows}};
}

// A figure of each replica.
struct ReplicaFigure {
  const char* name;
  std::function<double(const SimulatedTraffic&)> of;
};

std::vector<ReplicaFigure> ReplicaFigures(double seconds) {
  using T = SimulatedTraffic;
  return {{"utilisation", [=](const T& one) { return Over(one.busy_s, seconds); }},
          {"tokens_per_s", [=](const T& one) { return Over(one.output_tokens, seconds); }},
          {"ttft_p50_s", [](const T& one) { return one.first_token.At(0.5); }},
          {"ttft_p99_s", [](const T& one) { return one.first_token.At(0.99); }},
          {"inter_token_p50_s", [](const T& one) { return one.inter_token.At(0.5); }},
          {"queue_p99_s", [](const T& one) { return one.queue.At(0.99); }},
          {"rejected", [](const T& one) { return static_cast<double>(one.rejected); }}};
}

struct Spread {
  double least = 0, median = 0, most = 0;
};

Spread SpreadOf(const SimulationReport& report, const ReplicaFigure& figure) {
  std::vector<double> values;
  for (const SimulatedTraffic& one : report.result.replicas) values.push_back(figure.of(one));
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  const double median =
      values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
  return {values.front(), median, values.back()};
}

double Utilisation(const SimulationReport& report) {
  return Over(report.result.all.busy_s,
              report.result.seconds * static_cast<double>(report.result.replicas.size()));
}

std::string StepLimitedBy(const SimulationReport& report) {
  const planner::Parts& parts = report.result.all.parts;
  const double longest = std::max({parts.read, parts.slow_read, parts.arithmetic, parts.exchange});
  return report.result.all.besides_s > longest ? "what every step takes besides" : parts.Longest();
}

Json ClusterJson(const SimulationReport& report) {
  const SimulatedCluster& cluster = report.steps->cluster();
  const Calibration& calibration = report.steps->calibration();
  const SchedulerLimits& limits = report.options.limits;
  Json json = {{"hardware", cluster.hardware.name},
               {"nodes", cluster.hardware.nodes},
               {"engine", cluster.engine.name},
               {"replicas", report.options.replicas},
               {"router", report.options.affinity ? "prefix" : "least"},
               {"max_model_len", limits.max_model_len},
               {"max_num_seqs", limits.max_sequences},
               {"prefill_chunk", limits.prefill_rows},
               {"kv_blocks", limits.kv_blocks},
               {"prefix_cache", limits.prefix_cache},
               {"vocab_size", report.options.vocab_size},
               {"exchanges", report.steps->exchanges()}};
  if (!report.memory.empty()) json["memory"] = report.memory;
  json["calibration"] = {{"decode_tests", calibration.decode_tests},
                         {"prefill_tests", calibration.prefill_tests},
                         {"read", calibration.read},
                         {"arithmetic", calibration.arithmetic},
                         {"step_s", calibration.step_s}};
  return json;
}

Json ReportJson(const SimulationReport& report) {
  const SimulationResult& result = report.result;
  const SimulatedTraffic& all = result.all;
  const planner::Parts& parts = all.parts;
  Json json = {{"model", report.model},
               {"weights", report.weights.empty() ? Json(nullptr) : Json(report.weights)},
               {"trace", report.trace},
               {"seed", report.options.seed},
               {"cluster", ClusterJson(report)},
               {"seconds", result.seconds},
               {"offered_s", report.offered_s}};
  json.update(CountsJson(all));
  if (!result.refusal.empty()) json["refusal"] = result.refusal;
  json["tokens_per_s"] = Over(all.output_tokens, result.seconds);
  json["prompt_tokens_per_s"] = Over(all.prompt_tokens, result.seconds);
  json["requests_per_s"] = Over(all.completed, result.seconds);
  json["ttft_s"] = PercentilesJson(all.first_token);
  json["inter_token_s"] = PercentilesJson(all.inter_token);
  json["queue_s"] = PercentilesJson(all.queue);
  json["cached_part"] = Over(all.cached_tokens, static_cast<double>(all.prompt_tokens));
  json["utilisation"] = Utilisation(report);
  json["limited_by"] = LimitedBy(report);
  json["step_limited_by"] = StepLimitedBy(report);
  json["busy"] = {{"read_s", parts.read},
                  {"slow_read_s", parts.slow_read},
                  {"arithmetic_s", parts.arithmetic},
                  {"exchange_s", parts.exchange},
                  {"besides_s", all.besides_s}};
  for (const ReplicaFigure& figure : ReplicaFigures(result.seconds)) {
    const Spread spread = SpreadOf(report, figure);
    json["by_replica"][figure.name] = {
        {"min", spread.least}, {"median", spread.median}, {"max", spread.most}};
  }
  json["messages"] = report.steps->messages();
  json["history"] = absl::StrFormat("%016x", result.digest);
  return json;
}

void PrintHead(const SimulationReport& report) {
  const SimulatedCluster& cluster = report.steps->cluster();
  const Calibration& calibration = report.steps->calibration();
  std::printf("%s%s%s, %d x %s (%d x %s), as %s uses such machines\n", report.model.c_str(),
              report.weights.empty() ? "" : ", ", report.weights.c_str(), report.options.replicas,
              cluster.hardware.name.c_str(), cluster.hardware.nodes,
              cluster.hardware.node.name.c_str(), cluster.engine.name.c_str());
  std::printf("%-13s %s\n", "trace", report.trace.c_str());
  std::printf(
      "%-13s %s; %d decode and %d prefill tests as measured (reading x %.3g, arithmetic x "
      "%.3g, a step %.3g ms more)\n",
      "model", report.steps->exchanges(), calibration.decode_tests, calibration.prefill_tests,
      calibration.read, calibration.arithmetic, 1e3 * calibration.step_s);
  if (!report.memory.empty()) std::printf("%-13s %s\n", "memory", report.memory.c_str());
}

void PrintTable(const SimulationReport& report) {
  const SimulationResult& result = report.result;
  const SimulatedTraffic& all = result.all;
  PrintHead(report);
  std::printf(
      "%-13s %.1f s for %llu requests (the last came at %.1f s): %llu answered, %llu turned "
      "away by full queues, %llu too long\n",
      "time", result.seconds, static_cast<unsigned long long>(all.requests), report.offered_s,
      static_cast<unsigned long long>(all.completed), static_cast<unsigned long long>(all.rejected),
      static_cast<unsigned long long>(all.refused));
  if (!result.refusal.empty()) std::printf("%-13s %s\n", "too long", result.refusal.c_str());
  std::printf(
      "%-13s %.1f tokens/s, %.3g requests/s; %.1f prompt tokens/s, of which %.1f %% were "
      "in the prefix cache\n",
      "throughput", Over(all.output_tokens, result.seconds), Over(all.completed, result.seconds),
      Over(all.prompt_tokens, result.seconds),
      100 * Over(all.cached_tokens, static_cast<double>(all.prompt_tokens)));
  PrintPercentiles("first token", all.first_token);
  PrintPercentiles("inter token", all.inter_token);
  PrintPercentiles("queue", all.queue);
  std::printf("%-13s %.1f %% of the time computes; limited by %s, a step by %s\n", "utilisation",
              100 * Utilisation(report), LimitedBy(report).c_str(), StepLimitedBy(report).c_str());
  if (result.replicas.size() > 1) {
    std::printf("%-22s %12s %12s %12s\n", "of a replica", "least", "median", "most");
    for (const ReplicaFigure& figure : ReplicaFigures(result.seconds)) {
      const Spread spread = SpreadOf(report, figure);
      std::printf("  %-20s %12.4g %12.4g %12.4g\n", figure.name, spread.least, spread.median,
                  spread.most);
    }
  }
  std::printf("%-13s %016llx\n", "history", static_cast<unsigned long long>(result.digest));
}

}  // namespace

std::string LimitedBy(const SimulationReport& report) {
  return Utilisation(report) < kBusy ? "requests" : StepLimitedBy(report);
}

void PrintSimulation(const SimulationReport& report, const Options& options) {
  if (!options.json) return PrintTable(report);
  const Json json = ReportJson(report);
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

}  // namespace lockstep
