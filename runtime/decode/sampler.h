// Sampling by all ranks together: every rank holds every request's sampling state, works on its own
// vocabulary slice, and after one small all-gather picks the same tokens as all others.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/decode/candidates.h"
#include "runtime/decode/sampling_params.h"
#include "runtime/decode/thinking_meter.h"
#include "runtime/decode/token_constraint.h"

namespace lockstep {

// Which ids are tokens at all. Rows of the head beyond the tokenizer (padding) and holes in it are
// never sampled.
struct TokenSet {
  int64_t limit = 0;             // ids at or above are none
  std::vector<int32_t> unknown;  // ids below `limit` that are none either, ascending
  bool operator==(const TokenSet&) const = default;
};

// The sampling state of one sequence on one rank: what was said so far, as far as penalties need
// it, for the ids of this rank's slice.
class SequenceSampler {
 public:
  // `params` were validated. `prompt` counts for the repetition penalty. `constraint`: what the
  // output must follow; null: anything may come.
  SequenceSampler(const SamplingParams& params, const TokenSet& tokens, VocabSlice slice,
                  std::span<const int32_t> prompt,
                  std::unique_ptr<TokenConstraint> constraint = nullptr);

  const SamplingParams& params() const { return params_; }
  // The token was chosen and is now part of the output.
  void Append(int32_t token);
  // The last token was appended as a draft that the model did not confirm: from here on all is as
  // if it had never been. That holds for draws too: noise is a function of the seed and of the
  // position (random.h), so there is no stream to wind back, and a position that is sampled again
  // meets its old noise. Nobody drafts what a constraint has to allow.
  void TakeBack(int32_t token);
  // Null: anything may come.
  TokenConstraint* constraint() { return constraint_.get(); }

  // Applies penalties (repetition, then presence and frequency), bias, masks and the limit of
  // thinking to this rank's logits in place, and offers its best. `position` is where the sampled
  // token will stand in its sequence.
  void MakeOffer(std::span<float> logits, int64_t position, RowOffer* offer);
  // The model's own logit of an id of the slice that can be sampled, of the row that the last
  // MakeOffer changed.
  float RawLogit(std::span<const float> logits, int32_t id) const;
  // Copies the adjusted row; ids that are no tokens, or not allowed, become -infinity.
  void CopyChoices(std::span<const float> logits, std::span<float> out) const;

 private:
  struct Seen {
    bool in_prompt = false;
    int32_t in_output = 0;
  };
  void Adjust(std::span<float> logits);
  // The rows of the slice that are tokens; padding stands at the end of the vocabulary.
  int64_t TokenRows() const;
  // What may be chosen of an adjusted row.
  std::span<const float> Choices(std::span<const float> logits);

  SamplingParams params_;
  ThinkingMeter thinking_;
  TokenSet tokens_;
  VocabSlice slice_;
  std::unordered_map<int32_t, Seen> seen_;          // ids of the slice; empty without penalties
  std::unordered_map<int32_t, float> bias_;         // ids of the slice
  std::unordered_map<int32_t, float> raw_changed_;  // raw logits of the ids that Adjust changed
  std::unique_ptr<TokenConstraint> constraint_;
  std::vector<float> allowed_;  // the choices, where there is a constraint
};

// One output row of a step.
struct SamplingRow {
  SequenceSampler* sequence = nullptr;
  std::span<float> logits;  // this rank's slice of the row, changed in place
  int64_t position = 0;     // of the token to be sampled
};

// 64 bits that must be equal on all ranks; they ride on the exchange of every step.
struct StepDigest {
  uint64_t step = 0;
  uint64_t value = 0;
};

// A rank whose digest differs: the first one that disagrees with the majority (rank 0's side wins a
// tie). -1 if all agree.
int DisagreeingRank(std::span<const StepDigest> digests);

// The exchange around Decide. Used by one thread.
class TokenSampler {
 public:
  // `slices`: every rank's vocabulary range, in rank order. `rank_names` for errors ("rank 1
  // (spark-2, pid 4711)").
  TokenSampler(Group& group, std::vector<VocabSlice> slices, std::vector<std::string> rank_names);

  // Collective: all ranks call it with the same rows in the same order, once a step, also when
  // `rows` is empty. Chooses one token per row and tells the sequences. PeerLostError naming the
  // rank if a digest differs; InternalError if a row has no finite logit.
  Status Sample(std::span<SamplingRow> rows, StepDigest digest, std::vector<SampledToken>* tokens);

  // Rows whose logits were gathered whole so far (the rare path).
  int64_t rows_gathered_whole() const { return rows_gathered_whole_; }

 private:
  Status CheckDigests(size_t block_bytes, StepDigest mine);
  Status GatherWholeRows(std::span<SamplingRow> rows, std::span<const size_t> wanted,
                         std::vector<SampledToken>* tokens);

  Group& group_;
  std::vector<VocabSlice> slices_;
  std::vector<std::string> rank_names_;
  int64_t widest_slice_ = 0;
  int64_t rows_gathered_whole_ = 0;
  std::vector<std::byte> mine_, all_;
  std::vector<std::vector<RowOffer>> offers_;  // [row][rank]
};

}  // namespace lockstep
