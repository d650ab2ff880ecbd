#include "runtime/serve/cluster_json.h"

#include "runtime/serve/json_out.h"

namespace lockstep {
namespace {

Json RatesJson(const Rates& rates) {
  return {{"now", rates.now}, {"minute", rates.minute}, {"five_minutes", rates.five_minutes}};
}

Json TimesJson(const RankTimes& times) {
  return {{"compute_s", times.compute},
          {"exchange_s", times.exchange},
          {"rest_s", times.rest},
          {"skew_s", times.skew},
          {"read_bytes", times.read_bytes}};
}

Json RankJson(const RankFacts& rank, const EngineLoad& load) {
  const RankReport& report = rank.news.report;
  const double used = load.kv_blocks > 0 ? static_cast<double>(load.kv_blocks_used) /
                                               static_cast<double>(load.kv_blocks)
                                         : 0;
  return {{"rank", rank.info.rank},
          {"host", rank.info.host},
          {"pid", rank.info.pid},
          {"address", rank.info.address},
          {"threads", report.threads},
          {"memory",
           {{"planned_bytes", report.planned_bytes},
            {"weight_bytes", report.weight_bytes},
            {"kv_bytes", report.kv_bytes},
            {"kv_used_bytes", static_cast<uint64_t>(static_cast<double>(report.kv_bytes) * used)},
            {"resident_bytes", report.resident_bytes}}},
          {"weight_bytes_per_token", report.token_bytes},
          {"memory_bytes_per_s", report.memory_rate > 0 ? Json(report.memory_rate) : Json()},
          {"decode_steps", report.steps},
          {"round_trip_s", rank.news.round_trip_ns < 0
                               ? Json()
                               : Json(static_cast<double>(rank.news.round_trip_ns) * 1e-9)},
          {"silent_s", static_cast<double>(rank.news.silent_ns) * 1e-9},
          {"step", nullptr}};
}

}  // namespace

std::string ClusterJson(const ServedModel& model, const ClusterView& view) {
  Json ranks = Json::array();
  for (const RankFacts& rank : view.ranks) ranks.push_back(RankJson(rank, view.load));
  Json decode;
  if (view.decode.has_value()) {
    decode = {{"step_s", view.decode->step},
              {"tokens_per_step", view.decode->tokens},
              {"age_s", view.decode->age},
              {"waited_for", view.decode->waited_for < 0 ? Json() : Json(view.decode->waited_for)}};
    for (size_t r = 0; r < view.decode->ranks.size() && r < ranks.size(); ++r)
      ranks[r]["step"] = TimesJson(view.decode->ranks[r]);
  }
  const bool ready = view.readiness.ok();
  const Json json = {{"model", model.name},
                     {"max_model_len", model.max_model_len},
                     {"ready", ready},
                     {"error", ready ? Json() : Json(MessageOf(view.readiness))},
                     {"uptime_s", view.uptime},
                     {"requests",
                      {{"running", view.load.running},
                       {"waiting", view.load.waiting},
                       {"most_running", model.max_running}}},
                     {"kv",
                      {{"blocks", view.load.kv_blocks},
                       {"blocks_used", view.load.kv_blocks_used},
                       {"block_tokens", ClusterView::kKvBlockTokens}}},
                     {"tokens_per_s", RatesJson(view.generated)},
                     {"prompt_tokens_per_s", RatesJson(view.prompt)},
                     {"history", {{"every_s", 1}, {"tokens_per_s", view.per_second}}},
                     {"decode", std::move(decode)},
                     {"ranks", std::move(ranks)}};
  return Dump(json) + "\n";
}

}  // namespace lockstep
