#include "runtime/serve/metrics_text.h"

#include <functional>
#include <optional>

namespace lockstep {
namespace {

// Of a label's value.
std::string Escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n') {
      out += "\\n";
      continue;
    }
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out;
}

std::string LabelOf(const RankFacts& rank) {
  return absl::StrFormat(",rank=\"%d\",host=\"%s\"", rank.info.rank, Escaped(rank.info.host));
}

class Writer {
 public:
  explicit Writer(const std::string& model) : label_("model_name=\"" + Escaped(model) + "\"") {}

  void Head(const char* name, const char* type, const char* help) {
    text_ += absl::StrFormat("# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
  }
  void Value(const std::string& name, double value, const std::string& more = "") {
    text_ += absl::StrFormat("%s{%s%s} %.17g\n", name, label_, more, value);
  }
  void One(const char* name, const char* type, const char* help, double value) {
    Head(name, type, help);
    Value(name, value);
  }
  void Histogram(const std::string& name, const char* help, const TimeHistogram& times) {
    Head(name.c_str(), "histogram", help);
    uint64_t total = 0;
    for (size_t i = 0; i < times.counts.size(); ++i) {
      total += times.counts[i];
      const std::string bound = i < TimeHistogram::kBounds.size()
                                    ? absl::StrFormat("%g", TimeHistogram::kBounds[i])
                                    : "+Inf";
      Value(name + "_bucket", static_cast<double>(total), ",le=\"" + bound + "\"");
    }
    Value(name + "_sum", times.sum);
    Value(name + "_count", static_cast<double>(total));
  }
  // A value of each rank that has one.
  void PerRank(const char* name, const char* type, const char* help, const ClusterView& view,
               const std::function<std::optional<double>(const RankFacts&, size_t)>& value) {
    Head(name, type, help);
    for (size_t r = 0; r < view.ranks.size(); ++r) {
      if (const std::optional<double> known = value(view.ranks[r], r); known.has_value())
        Value(name, *known, LabelOf(view.ranks[r]));
    }
  }
  // A figure of each rank's report.
  template <typename T>
  void Reported(const char* name, const char* type, const char* help, const ClusterView& view,
                T RankReport::*figure, double unit = 1) {
    PerRank(name, type, help, view, [&](const RankFacts& rank, size_t) {
      return static_cast<double>(rank.news.report.*figure) * unit;
    });
  }
  std::string Take() { return std::move(text_); }

 private:
  const std::string label_;
  std::string text_;
};

std::optional<double> BandwidthShare(const ClusterView& view, size_t rank) {
  if (!view.decode.has_value() || rank >= view.decode->ranks.size()) return std::nullopt;
  const RankTimes& times = view.decode->ranks[rank];
  const auto rate = static_cast<double>(view.ranks[rank].news.report.memory_rate);
  if (times.compute == 0 || rate == 0) return std::nullopt;
  return times.read_bytes / times.compute / rate;
}

}  // namespace

std::string MetricsText(const std::string& model, const EngineLoad& load,
                        const EngineCounts& counts) {
  Writer out(model);
  out.One("vllm:num_requests_running", "gauge", "Requests that are being computed.",
          static_cast<double>(load.running));
  out.One("vllm:num_requests_waiting", "gauge", "Requests that wait.",
          static_cast<double>(load.waiting));
  out.One("vllm:num_preemptions_total", "counter",
          "Sequences that made room for requests of better priority.",
          static_cast<double>(counts.preemptions));
  out.One("vllm:kv_cache_usage_perc", "gauge", "Share of the KV blocks in use, 0 to 1.",
          load.kv_blocks > 0
              ? static_cast<double>(load.kv_blocks_used) / static_cast<double>(load.kv_blocks)
              : 0);
  out.One("vllm:prompt_tokens_total", "counter", "Prompt tokens, with cached ones.",
          static_cast<double>(counts.prompt_tokens));
  out.One("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked for in the cache.",
          static_cast<double>(counts.prompt_tokens));
  out.One("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the cache.",
          static_cast<double>(counts.cached_tokens));
  out.One("vllm:generation_tokens_total", "counter", "Tokens generated.",
          static_cast<double>(counts.generation_tokens));
  out.Head("vllm:request_success_total", "counter", "Requests that ended in order.");
  for (const FinishReason reason : {FinishReason::kStop, FinishReason::kLength}) {
    out.Value("vllm:request_success_total",
              static_cast<double>(counts.finished[static_cast<size_t>(reason)]),
              std::string(",finished_reason=\"") + FinishReasonName(reason) + "\"");
  }
  out.Head("lockstep_requests_ended_total", "counter", "Requests that ended otherwise.");
  for (const FinishReason reason : {FinishReason::kCancelled, FinishReason::kError}) {
    out.Value("lockstep_requests_ended_total",
              static_cast<double>(counts.finished[static_cast<size_t>(reason)]),
              std::string(",reason=\"") + FinishReasonName(reason) + "\"");
  }
  out.One("lockstep_steps_total", "counter", "Steps that all ranks computed together.",
          static_cast<double>(load.steps));
  out.One("lockstep_rows_total", "counter",
          "Tokens of prompts and answers that steps computed, without what the cache had.",
          static_cast<double>(load.rows));
  out.Histogram("vllm:time_to_first_token_seconds", "From submission to the first token.",
                counts.time_to_first_token);
  out.Histogram("vllm:inter_token_latency_seconds", "From one token of a request to its next.",
                counts.inter_token);
  out.Histogram("vllm:e2e_request_latency_seconds", "From submission to the last token.",
                counts.whole);
  out.Histogram("vllm:request_queue_time_seconds", "From submission to the first step.",
                counts.queue);
  out.Histogram("vllm:request_prefill_time_seconds", "From the first step to the first token.",
                counts.prefill);
  out.Histogram("vllm:request_decode_time_seconds", "From the first token to the last.",
                counts.decode);
  return out.Take();
}

std::string ClusterMetricsText(const std::string& model, const ClusterView& view) {
  Writer out(model);
  out.One("lockstep_circuit_open", "gauge",
          "1: groups of ranks were lost too often, and requests are refused until one computes.",
          view.circuit_open ? 1 : 0);
  out.One("lockstep_kv_blocks", "gauge", "KV blocks of the pool, of 16 tokens.",
          static_cast<double>(view.load.kv_blocks));
  out.One("lockstep_kv_blocks_used", "gauge", "KV blocks in use.",
          static_cast<double>(view.load.kv_blocks_used));
  out.One("lockstep_decode_steps_total", "counter", "Steps whose every row gave a token.",
          static_cast<double>(view.counts.decode_steps));
  out.One("lockstep_decode_step_seconds_total", "counter",
          "Time of these steps, with the plan, sampling and publishing.",
          static_cast<double>(view.counts.decode_ns) * 1e-9);
  out.One("lockstep_decode_step_tokens_total", "counter", "Tokens of these steps.",
          static_cast<double>(view.counts.decode_tokens));
  out.Reported("lockstep_rank_decode_steps_total", "counter",
               "Decode steps of a rank since it joined.", view, &RankReport::steps);
  out.Reported("lockstep_rank_compute_seconds_total", "counter",
               "Time that a rank computed in decode steps.", view, &RankReport::compute_ns, 1e-9);
  out.Reported("lockstep_rank_exchange_seconds_total", "counter",
               "Time of a rank's exchanges in decode steps, with waiting for others.", view,
               &RankReport::exchange_ns, 1e-9);
  out.Reported("lockstep_rank_exchanges_total", "counter", "Exchanges in decode steps.", view,
               &RankReport::exchanges);
  out.Reported("lockstep_rank_read_bytes_total", "counter",
               "Bytes of weights that a rank read in decode steps.", view, &RankReport::read_bytes);
  out.Reported("lockstep_rank_memory_bytes_per_second", "gauge",
               "What a rank's threads read from memory before the model was loaded; 0: not known.",
               view, &RankReport::memory_rate);
  out.PerRank("lockstep_rank_bandwidth_share", "gauge",
              "Share of that rate which the weights of the last decode steps reached while the "
              "rank computed.",
              view, [&](const RankFacts&, size_t r) { return BandwidthShare(view, r); });
  out.PerRank("lockstep_rank_skew_seconds", "gauge",
              "How much longer per decode step the rank that waits most waits than this one: the "
              "others wait for the largest.",
              view, [&](const RankFacts&, size_t r) -> std::optional<double> {
                if (!view.decode.has_value() || r >= view.decode->ranks.size()) return std::nullopt;
                return view.decode->ranks[r].skew;
              });
  out.PerRank(
      "lockstep_link_round_trip_seconds", "gauge",
      "Round trip between rank 0 and a rank over the control connection (TCP), the least of "
      "five seconds.",
      view, [](const RankFacts& rank, size_t) -> std::optional<double> {
        if (rank.news.round_trip_ns < 0) return std::nullopt;
        return static_cast<double>(rank.news.round_trip_ns) * 1e-9;
      });
  out.PerRank("lockstep_rank_silent_seconds", "gauge", "Since a rank's last heartbeat.", view,
              [](const RankFacts& rank, size_t) {
                return static_cast<double>(rank.news.silent_ns) * 1e-9;
              });
  out.Reported("lockstep_rank_weight_bytes", "gauge", "Memory of a rank's weights.", view,
               &RankReport::weight_bytes);
  out.Reported("lockstep_rank_weight_bytes_per_token", "gauge",
               "What one decoded token reads of them.", view, &RankReport::token_bytes);
  out.Reported("lockstep_rank_kv_bytes", "gauge", "Memory of a rank's KV cache.", view,
               &RankReport::kv_bytes);
  out.Reported("lockstep_rank_planned_bytes", "gauge", "Memory planned for a rank, all of it.",
               view, &RankReport::planned_bytes);
  out.Reported("lockstep_rank_resident_bytes", "gauge", "Memory that a rank's process holds.", view,
               &RankReport::resident_bytes);
  out.Reported("lockstep_rank_threads", "gauge", "Threads that compute on a rank.", view,
               &RankReport::threads);
  return out.Take();
}

}  // namespace lockstep
