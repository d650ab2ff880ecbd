// What every rank knows about the running sequences, kept in step by the plans: tokens, KV blocks,
// sampling state.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/decode/sampler.h"
#include "runtime/engine/plan.h"
#include "runtime/model/model.h"

namespace lockstep {

// One output row of the current batch, in batch order.
struct OutputRow {
  int32_t slot = 0;
  SpanOutput kind = SpanOutput::kNone;
  int64_t position = 0;  // of the row; a sampled token stands one further
};

// Not thread-safe; one per rank.
class SequenceTable {
 public:
  // `constraints` (null: none can be kept) makes those of new sequences. `samples`: false where
  // other ranks sample, so that no grammar need be kept here.
  SequenceTable(const ModelLimits& limits, int64_t vocab_size, VocabSlice slice,
                TokenConstraints* constraints = nullptr, bool samples = true);

  // Checks the plan against the state, applies it, and makes the batch of its rows. An
  // InternalError means that the ranks no longer agree; nothing may be computed then.
  Status Apply(const StepPlan& plan);

  const Batch& batch() const { return batch_; }
  const std::vector<OutputRow>& outputs() const { return outputs_; }
  // The sampling state of a running sequence.
  SequenceSampler& sampler(int32_t slot) { return sequences_[slot]->sampler; }
  // A token of a running sequence; -1 behind its end.
  int32_t TokenAt(int32_t slot, int64_t position) const {
    const std::vector<int32_t>& tokens = sequences_[slot]->tokens;
    return position < static_cast<int64_t>(tokens.size()) ? tokens[position] : -1;
  }
  // The token sampled for `slot`, at the end of its sequence.
  void Append(int32_t slot, int32_t token) { sequences_[slot]->tokens.push_back(token); }
  // Only the first `length` tokens of a running sequence stay, at least its prompt, which the
  // caller sees to: those behind were drafts that the model did not confirm, and the next rows
  // begin where they began. What the step has already is not changed (batch, outputs), nor are the
  // KV blocks: rank 0 counts them as given, and later rows write over what is in them. The sampler
  // is not told here, as it is not by Append: whoever appended to it takes that back
  // (SequenceSampler::TakeBack).
  void Truncate(int32_t slot, int64_t length);

  // What rank 0 says that blocks hold is what they hold here; else an InternalError.
  Status CheckKept(const KeptBlocks& kept) const;
  // Before the first plan: the blocks 0, 1, ... hold these, as BlockPool::Restore has it.
  void Restore(std::span<const ChainedBlock> blocks);

 private:
  struct Sequence {
    std::vector<int32_t> tokens;  // prompt and output
    std::vector<int32_t> blocks;
    int64_t computed = 0;  // positions whose KV is there
    SequenceSampler sampler;
  };
  // Blocks are known by the digest of all tokens up to their end, once those are computed.
  struct Block {
    int64_t users = 0;
    uint64_t content = 0;  // 0: not all of it is computed
  };
  Status Release(int32_t slot);
  Status Start(const NewSequence& start);
  Status Share(const NewSequence& start);
  Status Grow(const BlockGrowth& growth);
  Status AddRows(const RowSpan& span);
  Sequence* Find(int32_t slot);
  uint64_t ContentOf(const Sequence& sequence, int64_t block) const;

  ModelLimits limits_;
  int64_t vocab_size_;
  VocabSlice slice_;
  TokenConstraints* constraints_;
  bool samples_;
  std::vector<std::optional<Sequence>> sequences_;  // by slot
  std::vector<Block> blocks_;
  std::vector<bool> in_step_;  // by slot: has rows in the current plan
  Batch batch_;
  std::vector<OutputRow> outputs_;
};

// Most sequences at once: far above any use, so that a slot cannot make a rank allocate without
// bound.
inline constexpr int64_t kMaxSlots = 65'536;

}  // namespace lockstep
