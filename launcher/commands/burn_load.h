// The requests of `lockstep burn`: mixed, drawn from a seed, and asked again later, when they must
// be answered with the same tokens. Pure; one thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "runtime/engine/request.h"

namespace lockstep {

struct BurnRequest {
  uint64_t number = 0;        // of the answer that it gives, or repeats
  bool again = false;         // it was answered before
  int64_t cancel_after = -1;  // tokens; -1: it runs to its end
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int64_t max_tokens = 0;
};

struct BurnShape {
  uint64_t seed = 0;
  int64_t vocab_size = 0;     // all of these ids may stand in a prompt
  int64_t max_model_len = 0;  // of prompt and answer
  int64_t prefill_chunk = 0;  // long prompts are several of them
};

class BurnLoad {
 public:
  explicit BurnLoad(const BurnShape& shape) : shape_(shape) {}

  // Half of all: a short prompt. A quarter begin as others do, an eighth are long. A third of all
  // sample, an eighth are given up on the way, and from the first answers on a third repeat what
  // was answered.
  BurnRequest Next();
  // The whole answer to a request. False if it was another one before. The first few thousand are
  // kept.
  bool Answered(const BurnRequest& request, const std::vector<int32_t>& ids);

 private:
  uint64_t Draw() { return Value(0, drawn_++); }
  uint64_t Value(uint64_t stream, uint64_t index) const;
  void AppendTokens(uint64_t stream, int64_t count, std::vector<int32_t>* prompt) const;
  BurnRequest Make(uint64_t number) const;

  const BurnShape shape_;
  uint64_t drawn_ = 0;
  uint64_t made_ = 0;
  std::map<uint64_t, uint64_t> answers_;  // number -> digest of the tokens
};

}  // namespace lockstep
