// How one request's tokens are chosen, checked once where the request enters. The sampling part
// travels to every rank; the stopping part stays on rank 0.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

// After so many tokens of thinking comes the token that ends it, whatever the model would say.
struct ThinkingLimit {
  int64_t tokens = -1;  // between the marks, all together; -1: no limit
  int32_t begin = -1;   // the marks, <think> and </think>
  int32_t end = -1;
  bool operator==(const ThinkingLimit&) const = default;
};

// Equal on all ranks. The order of the steps is that of Hugging Face transformers: penalties and
// bias on the logits, then temperature, then the kept set by top-k, top-p (over what top-k left),
// min-p; then one draw.
struct SamplingParams {
  double temperature = 1.0;  // [0, 100]; below kGreedyTemperature: the most likely token
  int64_t top_k = 0;         // keep the k most likely tokens; 0: all
  double top_p = 1.0;        // (0, 1] keep the smallest set of tokens with this probability; 1: all
  double min_p = 0.0;  // [0, 1] drop tokens below this share of the best one's probability; 0: none
  double repetition_penalty = 1.0;  // (0, 100] divides positive and multiplies negative logits of
                                    // tokens in prompt and output (Hugging Face)
  double presence_penalty = 0.0;   // [-100, 100] subtracted once from tokens in the output (OpenAI)
  double frequency_penalty = 0.0;  // [-100, 100] subtracted per occurrence in the output (OpenAI)
  std::vector<std::pair<int32_t, float>>
      logit_bias;     // (token id, added value in [-100, 100]), ids distinct
  uint64_t seed = 0;  // of the draws; the same seed gives the same tokens
  int32_t logprobs =
      -1;  // report the chosen token's log-probability and those of the n best; -1: none
  ThinkingLimit thinking;

  bool greedy() const;
  // Restricted by top-k, top-p or min-p.
  bool restricted() const { return top_k > 0 || top_p < 1.0 || min_p > 0.0; }
  bool penalized() const {
    return repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0;
  }
  bool operator==(const SamplingParams&) const = default;
};

// Temperatures below this are greedy (as vLLM does): the draw could not choose another token
// anyway.
inline constexpr double kGreedyTemperature = 1e-5;
inline constexpr int32_t kMaxLogprobs = 20;
inline constexpr size_t kMaxLogitBias = 1024;

// When a request ends, besides the client going away.
struct StopParams {
  std::vector<int32_t> token_ids;  // end the answer; not part of the text
  std::vector<std::string> texts;  // end the answer where they begin; not part of the text
  int64_t max_tokens = 0;          // most tokens to generate, at least 1
};

inline constexpr size_t kMaxStopTexts = 64;
inline constexpr size_t kMaxStopTextBytes = 1024;
inline constexpr size_t kMaxStopTokens = 1024;

// RequestError naming the field, its value and what is allowed. `vocab_size` bounds token ids.
Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size);
Status ValidateStopParams(const StopParams& params, int64_t vocab_size);

}  // namespace lockstep
