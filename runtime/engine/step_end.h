// How a step ends on the ranks that hold the model's head together: its rows become tokens, or go
// to the first of them as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/digest.h"
#include "runtime/base/status.h"
#include "runtime/decode/sampler.h"
#include "runtime/engine/executor.h"
#include "runtime/engine/sequence_table.h"
#include "runtime/model/model.h"

namespace lockstep {

// A digest of all values so far.
inline uint64_t ChainDigest(uint64_t digest, uint64_t value) { return DigestOf(&value, 1, digest); }

// Used by one thread. What comes out is appended to the outcome, which only the group's first rank
// has: null elsewhere.
class StepEnd {
 public:
  // `slices` and `names`: of the ranks of `group`, which outlives it.
  StepEnd(const ModelConfig& config, Group& group, std::vector<VocabSlice> slices,
          std::vector<std::string> names);

  // Collective: samples the rows among `outputs` that ask for it, in their order, and tells their
  // sequences. outputs[i] says what row i of `output` is. An error that names the rank if `digest`
  // differs between ranks.
  Status Sample(SequenceTable& table, std::span<const OutputRow> outputs, const StepOutput& output,
                StepDigest digest, StepOutcome* outcome);
  // Collective: the rows that are wanted as they are.
  Status GatherRaw(std::span<const OutputRow> outputs, const StepOutput& output,
                   StepOutcome* outcome);
  // Collective: these rows of every rank's output, with `dim` values of the hidden states.
  Status GatherRows(const StepOutput& output, const std::vector<size_t>& rows, size_t dim,
                    std::vector<float>* logits, std::vector<std::vector<float>>* hidden);

  uint64_t token_digest() const { return token_digest_; }  // over all sampled tokens
  int64_t rows_gathered_whole() const { return sampler_.rows_gathered_whole(); }

 private:
  const size_t vocab_size_, hidden_size_;
  Group& group_;
  const std::vector<VocabSlice> slices_;
  TokenSampler sampler_;
  uint64_t token_digest_ = 0;
  std::vector<SamplingRow> rows_;
  std::vector<SampledToken> tokens_;
  std::vector<float> packed_;
};

}  // namespace lockstep
