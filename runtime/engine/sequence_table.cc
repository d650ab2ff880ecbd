#include "runtime/engine/sequence_table.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/digest.h"

namespace lockstep {
namespace {

// What a block of these tokens holds behind that content (0: at the beginning); never 0.
uint64_t ContentBehind(uint64_t before, std::span<const int32_t> tokens) {
  return std::max<uint64_t>(Digest64(std::as_bytes(tokens), before), 1);
}

}  // namespace

SequenceTable::SequenceTable(const ModelLimits& limits, int64_t vocab_size, VocabSlice slice,
                             TokenConstraints* constraints, bool samples)
    : limits_(limits),
      vocab_size_(vocab_size),
      slice_(slice),
      constraints_(constraints),
      samples_(samples),
      blocks_(limits.kv_blocks) {}

// What the sequence's block of that index holds, behind those before it.
uint64_t SequenceTable::ContentOf(const Sequence& sequence, int64_t block) const {
  const uint64_t before = block == 0 ? 0 : blocks_[sequence.blocks[block - 1]].content;
  return ContentBehind(before,
                       std::span(sequence.tokens).subspan(block * kBlockTokens, kBlockTokens));
}

Status SequenceTable::CheckKept(const KeptBlocks& kept) const {
  for (size_t i = 0; i < kept.blocks.size(); ++i) {
    const int32_t block = kept.blocks[i];
    const ChainedBlock& chain = kept.chains[i];
    if (block < 0 || block >= limits_.kv_blocks)
      return InternalError("step plan keeps block %d, which is not in the pool", block);
    if (chain.before < -1 || chain.before >= static_cast<int64_t>(i))
      return InternalError("step plan keeps block %d behind none before it", block);
    const uint64_t before = chain.before < 0 ? 0 : blocks_[kept.blocks[chain.before]].content;
    if (blocks_[block].content != ContentBehind(before, chain.tokens))
      return InternalError("step plan keeps block %d, which holds other tokens", block);
  }
  return OkStatus();
}

void SequenceTable::Restore(std::span<const ChainedBlock> blocks) {
  const size_t count = std::min(blocks.size(), blocks_.size());
  for (size_t i = 0; i < count; ++i) {
    const uint64_t before = blocks[i].before < 0 ? 0 : blocks_[blocks[i].before].content;
    blocks_[i].content = ContentBehind(before, blocks[i].tokens);
  }
}

SequenceTable::Sequence* SequenceTable::Find(int32_t slot) {
  if (slot < 0 || slot >= static_cast<int64_t>(sequences_.size()) || !sequences_[slot])
    return nullptr;
  return &*sequences_[slot];
}

void SequenceTable::Truncate(int32_t slot, int64_t length) {
  Sequence* sequence = Find(slot);
  LOCKSTEP_CHECK(sequence != nullptr);
  LOCKSTEP_CHECK(length >= 1 && length <= static_cast<int64_t>(sequence->tokens.size()));
  sequence->tokens.resize(static_cast<size_t>(length));
  sequence->computed = std::min(sequence->computed, length);
  for (size_t i = sequence->computed / kBlockTokens; i < sequence->blocks.size(); ++i)
    blocks_[sequence->blocks[i]].content = 0;
}

Status SequenceTable::Release(int32_t slot) {
  Sequence* sequence = Find(slot);
  if (sequence == nullptr) return InternalError("step plan releases slot %d, which is empty", slot);
  for (const int32_t block : sequence->blocks) --blocks_[block].users;
  sequences_[slot].reset();
  return OkStatus();
}

Status SequenceTable::Start(const NewSequence& start) {
  if (start.slot < 0 || start.slot >= kMaxSlots)
    return InternalError("step plan starts slot %d", start.slot);
  if (Find(start.slot) != nullptr)
    return InternalError("step plan starts slot %d, which is taken", start.slot);
  const int64_t length = static_cast<int64_t>(start.tokens.size());
  if (length < 1 || length > limits_.max_model_len) {
    return InternalError("step plan starts a sequence of %d tokens, the limit is %d", length,
                         limits_.max_model_len);
  }
  if (start.sampled < 0 || start.sampled >= length) {
    return InternalError("step plan starts a sequence of %d tokens, %d of them sampled", length,
                         start.sampled);
  }
  for (const int32_t token : start.tokens) {
    if (token < 0 || token >= vocab_size_) return InternalError("step plan names token %d", token);
  }
  if (!std::is_sorted(start.token_set.unknown.begin(), start.token_set.unknown.end())) {
    return InternalError("step plan has an unsorted token set");
  }
  std::unique_ptr<TokenConstraint> constraint;
  if (!start.grammar.empty() && samples_) {
    if (constraints_ == nullptr)
      return InternalError("step plan constrains slot %d, which this rank cannot", start.slot);
    constraint = constraints_->Start(start.grammar);
  }
  if (static_cast<int64_t>(sequences_.size()) <= start.slot) sequences_.resize(start.slot + 1);
  const auto prompt = std::span(start.tokens).first(start.tokens.size() - start.sampled);
  sequences_[start.slot].emplace(Sequence{
      start.tokens,
      {},
      0,
      SequenceSampler(start.params, start.token_set, slice_, prompt, std::move(constraint))});
  for (const int32_t token : std::span(start.tokens).subspan(prompt.size()))
    sequences_[start.slot]->sampler.Append(token);
  // Room for what the sequence may become, so that appending never moves it within a step.
  sequences_[start.slot]->tokens.reserve(
      std::min<int64_t>(limits_.max_model_len + 1, length + 4096));
  return Share(start);
}

// What rank 0 says that blocks hold is what they hold here: a slip would be another conversation's
// text.
Status SequenceTable::Share(const NewSequence& start) {
  Sequence& sequence = *sequences_[start.slot];
  if (static_cast<int64_t>(start.shared.size()) * kBlockTokens >=
      static_cast<int64_t>(start.tokens.size())) {
    return InternalError("step plan shares %d blocks with a prompt of %d tokens",
                         start.shared.size(), start.tokens.size());
  }
  for (const int32_t block : start.shared) {
    const bool is_block = block >= 0 && block < limits_.kv_blocks;
    const auto index = static_cast<int64_t>(sequence.blocks.size());
    if (!is_block || blocks_[block].content != ContentOf(sequence, index)) {
      return InternalError("step plan shares block %d, which %s", block,
                           is_block ? "holds other tokens" : "is not in the pool");
    }
    ++blocks_[block].users;
    sequence.blocks.push_back(block);
    sequence.computed += kBlockTokens;
  }
  return OkStatus();
}

Status SequenceTable::Grow(const BlockGrowth& growth) {
  Sequence* sequence = Find(growth.slot);
  if (sequence == nullptr)
    return InternalError("step plan gives blocks to slot %d, which is empty", growth.slot);
  for (const int32_t block : growth.blocks) {
    if (block < 0 || block >= limits_.kv_blocks || blocks_[block].users > 0) {
      return InternalError("step plan gives away block %d, which is %s", block,
                           block < 0 || block >= limits_.kv_blocks ? "not in the pool" : "in use");
    }
    blocks_[block] = {.users = 1};
    sequence->blocks.push_back(block);
  }
  return OkStatus();
}

Status SequenceTable::AddRows(const RowSpan& span) {
  Sequence* sequence = Find(span.slot);
  if (sequence == nullptr)
    return InternalError("step plan computes slot %d, which is empty", span.slot);
  if (in_step_[span.slot]) return InternalError("step plan computes slot %d twice", span.slot);
  in_step_[span.slot] = true;
  const int64_t length = static_cast<int64_t>(sequence->tokens.size());
  const int64_t end = int64_t{span.begin} + span.count;
  if (span.begin != sequence->computed || end > length || end > limits_.max_model_len) {
    return InternalError(
        "step plan computes positions %d .. %d of slot %d, which has %d of %d tokens computed",
        span.begin, end, span.slot, sequence->computed, length);
  }
  if (end > static_cast<int64_t>(sequence->blocks.size()) * kBlockTokens) {
    return InternalError("step plan computes slot %d beyond its KV blocks", span.slot);
  }
  if (span.output == SpanOutput::kSample && end != length) {
    return InternalError("step plan samples slot %d in the middle of its prompt", span.slot);
  }
  const int64_t rows = batch_.rows();
  const int64_t wanted = span.output == SpanOutput::kNone     ? 0
                         : span.output == SpanOutput::kSample ? 1
                                                              : span.count;
  if (rows + span.count > limits_.max_rows ||
      static_cast<int64_t>(outputs_.size()) + wanted > limits_.max_outputs) {
    return InternalError("step plan has more rows than the limit (%d rows, %d outputs)",
                         limits_.max_rows, limits_.max_outputs);
  }
  const int32_t index = static_cast<int32_t>(batch_.block_tables.size());
  batch_.block_tables.push_back(sequence->blocks);
  for (int64_t i = 0; i < span.count; ++i) {
    batch_.tokens.push_back(sequence->tokens[span.begin + i]);
    batch_.positions.push_back(static_cast<int32_t>(span.begin + i));
    batch_.sequences.push_back(index);
    if (i >= span.count - wanted) {
      batch_.output_rows.push_back(static_cast<int32_t>(rows + i));
      outputs_.push_back({span.slot, span.output, span.begin + i});
    }
  }
  for (int64_t full = span.begin / kBlockTokens; (full + 1) * kBlockTokens <= end; ++full)
    blocks_[sequence->blocks[full]].content = ContentOf(*sequence, full);
  sequence->computed = end;
  return OkStatus();
}

Status SequenceTable::Apply(const StepPlan& plan) {
  batch_.tokens.clear();
  batch_.positions.clear();
  batch_.sequences.clear();
  batch_.block_tables.clear();
  batch_.output_rows.clear();
  outputs_.clear();
  for (const int32_t slot : plan.released) LOCKSTEP_RETURN_IF_ERROR(Release(slot));
  for (const NewSequence& start : plan.started) LOCKSTEP_RETURN_IF_ERROR(Start(start));
  for (const BlockGrowth& growth : plan.growth) LOCKSTEP_RETURN_IF_ERROR(Grow(growth));
  in_step_.assign(sequences_.size(), false);
  for (const RowSpan& span : plan.spans) LOCKSTEP_RETURN_IF_ERROR(AddRows(span));
  return OkStatus();
}

}  // namespace lockstep
