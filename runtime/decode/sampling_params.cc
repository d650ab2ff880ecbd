#include "runtime/decode/sampling_params.h"

#include <cmath>
#include <unordered_set>

namespace lockstep {
namespace {

// NaN fails both comparisons and is refused with the rest.
Status InRange(const char* name, double value, double lowest, double highest) {
  if (value >= lowest && value <= highest) return OkStatus();
  return RequestError("%s is %g, but must lie in %g .. %g", name, value, lowest, highest);
}

Status ValidTokenId(const char* name, int64_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return OkStatus();
  return RequestError("%s names token id %d, but the model's ids are 0 .. %d", name, id,
                      vocab_size - 1);
}

}  // namespace

bool SamplingParams::greedy() const { return temperature < kGreedyTemperature; }

Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size) {
  LOCKSTEP_RETURN_IF_ERROR(InRange("temperature", params.temperature, 0, 100));
  LOCKSTEP_RETURN_IF_ERROR(InRange("top_k", static_cast<double>(params.top_k), 0, 1'000'000));
  LOCKSTEP_RETURN_IF_ERROR(InRange("top_p", params.top_p, 0, 1));
  if (params.top_p == 0)
    return RequestError("top_p is 0, but must be above 0; for greedy set temperature to 0");
  LOCKSTEP_RETURN_IF_ERROR(InRange("min_p", params.min_p, 0, 1));
  LOCKSTEP_RETURN_IF_ERROR(InRange("repetition_penalty", params.repetition_penalty, 0.01, 100));
  LOCKSTEP_RETURN_IF_ERROR(InRange("presence_penalty", params.presence_penalty, -100, 100));
  LOCKSTEP_RETURN_IF_ERROR(InRange("frequency_penalty", params.frequency_penalty, -100, 100));
  LOCKSTEP_RETURN_IF_ERROR(InRange("logprobs", params.logprobs, -1, kMaxLogprobs));
  if (params.logit_bias.size() > kMaxLogitBias) {
    return RequestError("logit_bias has %d entries, but at most %d are allowed",
                        params.logit_bias.size(), kMaxLogitBias);
  }
  if (params.thinking.tokens != -1) {
    LOCKSTEP_RETURN_IF_ERROR(
        InRange("thinking_budget", static_cast<double>(params.thinking.tokens), 0, 1e9));
    for (const int32_t id : {params.thinking.begin, params.thinking.end})
      LOCKSTEP_RETURN_IF_ERROR(ValidTokenId("thinking_budget", id, vocab_size));
  }
  std::unordered_set<int32_t> seen;
  for (const auto& [id, bias] : params.logit_bias) {
    LOCKSTEP_RETURN_IF_ERROR(ValidTokenId("logit_bias", id, vocab_size));
    LOCKSTEP_RETURN_IF_ERROR(InRange("logit_bias", bias, -100, 100));
    if (!seen.insert(id).second) return RequestError("logit_bias names token id %d twice", id);
  }
  return OkStatus();
}

Status ValidateStopParams(const StopParams& params, int64_t vocab_size) {
  if (params.max_tokens < 1)
    return RequestError("max_tokens is %d, but must be at least 1", params.max_tokens);
  if (params.texts.size() > kMaxStopTexts) {
    return RequestError("stop has %d strings, but at most %d are allowed", params.texts.size(),
                        kMaxStopTexts);
  }
  for (const std::string& text : params.texts) {
    if (text.empty()) return RequestError("stop has an empty string; leave it out");
    if (text.size() > kMaxStopTextBytes) {
      return RequestError("a stop string has %d bytes, but at most %d are allowed", text.size(),
                          kMaxStopTextBytes);
    }
  }
  if (params.token_ids.size() > kMaxStopTokens) {
    return RequestError("stop_token_ids has %d ids, but at most %d are allowed",
                        params.token_ids.size(), kMaxStopTokens);
  }
  for (const int32_t id : params.token_ids) {
    LOCKSTEP_RETURN_IF_ERROR(ValidTokenId("stop_token_ids", id, vocab_size));
  }
  return OkStatus();
}

}  // namespace lockstep
