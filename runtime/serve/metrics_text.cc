#include "runtime/serve/metrics_text.h"

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
  std::string Take() { return std::move(text_); }

 private:
  const std::string label_;
  std::string text_;
};

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

}  // namespace lockstep
