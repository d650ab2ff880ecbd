#include "launcher/commands/plan_report.h"

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_format.h"

namespace lockstep {
namespace {

using planner::DecodeRate;
using planner::Figure;
using planner::Parts;
using planner::Way;
using Json = nlohmann::ordered_json;

constexpr double kGib = 1024.0 * 1024 * 1024;

Json FigureJson(const Figure& figure) {
  if (!figure.known()) return nullptr;
  return {{"value", figure.value}, {"source", figure.source}};
}

// Numbers that are not known, or mean nothing for what does not fit.
Json NumberOrNull(bool known, double value) { return known ? Json(value) : Json(nullptr); }

Json PartsJson(const Parts& parts) {
  return {{"read_s", parts.read},
          {"slow_read_s", parts.slow_read},
          {"arithmetic_s", parts.arithmetic},
          {"exchange_s", parts.exchange}};
}

Json MemoryJson(const MemoryPlan& plan) {
  return {{"weights", plan.weight_bytes},
          {"kv", plan.kv_bytes},
          {"scratch", plan.scratch_bytes},
          {"total", plan.total()}};
}

const MemoryPlan& Largest(const Way& way) {
  return *std::max_element(way.ranks.begin(), way.ranks.end(),
                           [](const auto& a, const auto& b) { return a.total() < b.total(); });
}

Json WayJson(const Way& way, const planner::Hardware& hardware) {
  Json json = {{"fits", way.fits}, {"measured", way.measured}};
  if (!way.reason.empty()) json["reason"] = way.reason;
  json["bytes_per_rank"] = MemoryJson(Largest(way));
  json["ranks"] = Json::array();
  for (const MemoryPlan& plan : way.ranks) json["ranks"].push_back(MemoryJson(plan));
  json["max_context"] = way.max_context;
  const bool fast = way.has_speed();
  const bool prompts = way.prefill_tokens_per_s > 0;
  json["decode_tokens_per_s"] = NumberOrNull(fast, fast ? way.decode.front().tokens_per_s : 0);
  json["decode_by_users"] = Json::array();
  for (const DecodeRate& rate : way.decode) {
    json["decode_by_users"].push_back(
        {{"users", rate.users},
         {"tokens_per_s", rate.tokens_per_s},
         {"tokens_per_s_each", rate.tokens_per_s / static_cast<double>(rate.users)},
         {"limited_by", rate.step.Longest()},
         {"step", PartsJson(rate.step)}});
  }
  const Json memory = way.fits ? Json(nullptr) : Json("memory");
  json["prefill_tokens_per_s"] = NumberOrNull(prompts, way.prefill_tokens_per_s);
  json["ttft_s"] = NumberOrNull(prompts, way.ttft_s);
  if (!way.prefill_reason.empty()) json["prefill_reason"] = way.prefill_reason;
  json["limited_by"] = fast ? Json(way.decode.front().step.Longest()) : memory;
  json["prefill_limited_by"] = prompts ? Json(way.prefill.Longest()) : memory;
  json["prefill"] = prompts ? PartsJson(way.prefill) : Json(nullptr);
  json["joules_per_token"] = NumberOrNull(way.joules_per_token > 0, way.joules_per_token);
  json["cost"] = {
      {"purchase_usd", NumberOrNull(way.purchase_usd > 0, way.purchase_usd)},
      {"cloud_usd_per_month", FigureJson(hardware.cloud_usd_per_month)},
      {"power_usd_per_month", NumberOrNull(way.power_usd_per_month > 0, way.power_usd_per_month)},
      {"months_to_break_even",
       NumberOrNull(way.months_to_break_even > 0, way.months_to_break_even)}};
  if (!way.cost_reason.empty()) json["cost"]["reason"] = way.cost_reason;
  return json;
}

Json ReportJson(const PlanReport& report) {
  const planner::Hardware& hardware = report.hardware;
  const planner::Engine& engine = report.engine;
  const planner::Load& load = report.load;
  Json json = {{"model", report.model},
               {"weights", report.weights.empty() ? Json(nullptr) : Json(report.weights)},
               {"file_bytes", report.file_bytes},
               {"users", load.users},
               {"context", load.context},
               {"prompt_tokens", load.prompt},
               {"kv_cache_dtype", kernels::NameOf(load.cache)},
               {"wire_bytes", load.wire_bytes},
               {"prefill_chunk", load.chunk}};
  json["hardware"] = {{"name", hardware.name},
                      {"nodes", hardware.nodes},
                      {"node", hardware.node.name},
                      {"family", hardware.node.family},
                      {"memory_gib", FigureJson(hardware.node.memory_gib)},
                      {"gb_per_s", FigureJson(hardware.node.gb_per_s)},
                      {"slow_gib", FigureJson(hardware.node.slow_gib)},
                      {"slow_gb_per_s", FigureJson(hardware.node.slow_gb_per_s)},
                      {"tops", FigureJson(hardware.node.tops)},
                      {"watts", FigureJson(hardware.node.watts)},
                      {"link", hardware.link.name},
                      {"link_latency_us", FigureJson(hardware.link.latency_us)},
                      {"link_gb_per_s", FigureJson(hardware.link.gb_per_s)},
                      {"price_usd", FigureJson(hardware.price_usd)},
                      {"cloud_usd_per_month", FigureJson(hardware.cloud_usd_per_month)},
                      {"usd_per_kwh", FigureJson(hardware.usd_per_kwh)},
                      {"hours_per_day", FigureJson(hardware.hours_per_day)}};
  json["engine"] = {{"name", engine.name},
                    {"read_share", FigureJson(engine.read_share)},
                    {"arithmetic_share", FigureJson(engine.arithmetic_share)},
                    {"shares_of", engine.of_measured ? "measured figures" : "datasheets"},
                    {"ways", engine.ways},
                    {"ring", engine.ring},
                    {"ring_source", engine.ring_source},
                    {"in_turns", engine.in_turns},
                    {"kv_cache_dtype", engine.cache},
                    {"wire", engine.wire},
                    {"prefill_chunk", engine.chunk}};
  for (const Way* way : {&report.answer.single, &report.answer.pipeline, &report.answer.tensor})
    json[way->name] = WayJson(*way, hardware);
  return json;
}

void PrintFigure(const char* name, const Figure& figure, const char* unit) {
  if (!figure.known()) return;
  std::printf("  %-12s %g %s (%s)\n", name, figure.value, unit, figure.source.c_str());
}

void PrintRates(const Way& way) {
  std::printf("  decode      ");
  for (const DecodeRate& rate : way.decode) {
    std::printf("%s%d user%s: %.1f tokens/s", &rate == way.decode.data() ? "" : ", ",
                static_cast<int>(rate.users), rate.users == 1 ? "" : "s", rate.tokens_per_s);
  }
  const Parts& step = way.decode.front().step;
  std::printf(
      "\n              a step of one user takes %.1f ms, limited by %s (memory %.1f, arithmetic "
      "%.1f, exchange %.1f)\n",
      1e3 * step.total(), step.Longest().c_str(), 1e3 * (step.read + step.slow_read),
      1e3 * step.arithmetic, 1e3 * step.exchange);
  if (way.prefill_reason.empty()) {
    std::printf("  prompt      %.0f tokens/s, limited by %s; first token after %.1f s\n",
                way.prefill_tokens_per_s, way.prefill.Longest().c_str(), way.ttft_s);
  } else {
    std::printf("  prompt      not known: %s\n", way.prefill_reason.c_str());
  }
  if (way.joules_per_token > 0) std::printf("  energy      %.1f J a token", way.joules_per_token);
  if (way.power_usd_per_month > 0) std::printf(", %.0f USD a month", way.power_usd_per_month);
  if (way.joules_per_token > 0) std::printf("\n");
  if (way.purchase_usd <= 0) return;
  std::printf("  cost        %.0f USD", way.purchase_usd);
  if (way.months_to_break_even > 0) {
    std::printf(", as much as the cloud after %.1f months\n", way.months_to_break_even);
  } else {
    std::printf("; %s\n", way.cost_reason.c_str());
  }
}

void PrintTable(const PlanReport& report) {
  const planner::Hardware& hardware = report.hardware;
  std::printf("%s%s%s on %s: %d x %s\n", report.model.c_str(), report.weights.empty() ? "" : ", ",
              report.weights.c_str(), hardware.name.c_str(), hardware.nodes,
              hardware.node.name.c_str());
  PrintFigure("memory", hardware.node.memory_gib, "GiB");
  PrintFigure("bandwidth", hardware.node.gb_per_s, "GB/s");
  PrintFigure("behind it", hardware.node.slow_gib, "GiB");
  PrintFigure("arithmetic", hardware.node.tops, "Tops");
  PrintFigure("latency", hardware.link.latency_us, "us");
  PrintFigure("link", hardware.link.gb_per_s, "GB/s");
  PrintFigure("price", hardware.price_usd, "USD");
  PrintFigure("cloud", hardware.cloud_usd_per_month, "USD a month");
  std::printf("as %s uses such machines:\n", report.engine.name.c_str());
  PrintFigure("reading", report.engine.read_share, "of the bandwidth");
  PrintFigure("computing", report.engine.arithmetic_share, "of the peak");
  std::printf(
      "%d user%s of %d positions, of which %d are the prompt; KV cache %s, sums of %g bytes a "
      "value, prompts in chunks of %d\n",
      static_cast<int>(report.load.users), report.load.users == 1 ? "" : "s",
      static_cast<int>(report.load.context), static_cast<int>(report.load.prompt),
      std::string(kernels::NameOf(report.load.cache)).c_str(), report.load.wire_bytes,
      static_cast<int>(report.load.chunk));
  for (const Way* way : {&report.answer.single, &report.answer.pipeline, &report.answer.tensor}) {
    std::printf("\n%s: ", way->name.c_str());
    if (!way->fits) {
      std::printf("does not fit: %s\n", way->reason.c_str());
      continue;
    }
    const MemoryPlan& largest = Largest(*way);
    std::printf("fits, with contexts of up to %d\n", static_cast<int>(way->max_context));
    std::printf("  memory      %.1f GiB a rank: weights %.1f, KV cache %.1f, scratch %.1f\n",
                static_cast<double>(largest.total()) / kGib,
                static_cast<double>(largest.weight_bytes) / kGib,
                static_cast<double>(largest.kv_bytes) / kGib,
                static_cast<double>(largest.scratch_bytes) / kGib);
    if (!way->measured) std::printf("  a guess     %s\n", way->reason.c_str());
    PrintRates(*way);
  }
}

}  // namespace

void PrintPlan(const PlanReport& report, const Options& options) {
  if (!options.json) return PrintTable(report);
  const Json json = ReportJson(report);
  std::printf("%s\n", json.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
}

}  // namespace lockstep
