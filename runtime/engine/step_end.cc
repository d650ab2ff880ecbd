#include "runtime/engine/step_end.h"

#include <algorithm>
#include <utility>

namespace lockstep {

StepEnd::StepEnd(const ModelConfig& config, Group& group, std::vector<VocabSlice> slices,
                 std::vector<std::string> names)
    : vocab_size_(static_cast<size_t>(config.vocab_size)),
      hidden_size_(static_cast<size_t>(config.hidden_size)),
      group_(group),
      slices_(std::move(slices)),
      sampler_(group, slices_, std::move(names)) {}

Status StepEnd::Sample(SequenceTable& table, std::span<const OutputRow> outputs,
                       const StepOutput& output, StepDigest digest, StepOutcome* outcome) {
  const size_t width = static_cast<size_t>(slices_[group_.rank()].size());
  rows_.clear();
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].kind != SpanOutput::kSample) continue;
    if (TokenConstraint* constraint = table.sampler(outputs[i].slot).constraint()) {
      // A rank that allows other tokens is found out with this step.
      const std::span<const uint32_t> allowed = constraint->Allowed();
      digest.value = DigestOf(allowed.data(), allowed.size(), digest.value);
      if (outcome != nullptr && constraint->too_slow())
        outcome->too_slow.push_back(outputs[i].slot);
    }
    rows_.push_back({&table.sampler(outputs[i].slot), output.logits.subspan(i * width, width),
                     outputs[i].position + 1});
    if (outcome != nullptr) outcome->slots.push_back(outputs[i].slot);
  }
  LOCKSTEP_RETURN_IF_ERROR(sampler_.Sample(rows_, digest, &tokens_));
  size_t next = 0;
  for (const OutputRow& row : outputs) {
    if (row.kind != SpanOutput::kSample) continue;
    const int32_t token = tokens_[next++].id;
    table.Append(row.slot, token);
    token_digest_ = ChainDigest(token_digest_, static_cast<uint64_t>(token));
  }
  if (outcome != nullptr)
    outcome->tokens.insert(outcome->tokens.end(), tokens_.begin(), tokens_.end());
  return OkStatus();
}

// Only `lockstep logits` wants raw rows.
Status StepEnd::GatherRaw(std::span<const OutputRow> outputs, const StepOutput& output,
                          StepOutcome* outcome) {
  std::vector<size_t> raw;
  bool hidden = false;
  for (size_t i = 0; i < outputs.size(); ++i) {
    const SpanOutput kind = outputs[i].kind;
    if (kind != SpanOutput::kNone && kind != SpanOutput::kSample) raw.push_back(i);
    hidden = hidden || kind == SpanOutput::kRawHidden || kind == SpanOutput::kRawDraft;
  }
  if (outcome != nullptr) outcome->raw_rows += static_cast<int64_t>(raw.size());
  return GatherRows(output, raw, hidden ? hidden_size_ : 0,
                    outcome == nullptr ? nullptr : &outcome->raw_logits,
                    outcome == nullptr ? nullptr : &outcome->raw_hidden);
}

// Every other rank sends its slices (and hidden rows) to the first, one after the other.
Status StepEnd::GatherRows(const StepOutput& output, const std::vector<size_t>& rows, size_t dim,
                           std::vector<float>* logits, std::vector<std::vector<float>>* hidden) {
  if (rows.empty()) return OkStatus();
  const size_t mine = static_cast<size_t>(slices_[group_.rank()].size());
  packed_.resize(rows.size() * (mine + dim));
  for (size_t k = 0; k < rows.size(); ++k) {
    float* to = packed_.data() + k * (mine + dim);
    std::copy_n(output.logits.data() + rows[k] * mine, mine, to);
    if (dim > 0) std::copy_n(output.hidden.data() + rows[k] * dim, dim, to + mine);
  }
  if (group_.rank() != 0) return group_.Send(0, std::as_bytes(std::span<const float>(packed_)));
  const size_t first = logits->size();
  logits->resize(first + rows.size() * vocab_size_);
  if (hidden != nullptr && dim > 0) hidden->resize(group_.size());
  for (int r = 0; r < group_.size(); ++r) {
    const size_t width = static_cast<size_t>(slices_[r].size());
    if (r > 0) {
      packed_.resize(rows.size() * (width + dim));
      LOCKSTEP_RETURN_IF_ERROR(group_.Receive(r, std::as_writable_bytes(std::span(packed_))));
    }
    for (size_t k = 0; k < rows.size(); ++k) {
      const float* from = packed_.data() + k * (width + dim);
      std::copy_n(from, width, logits->data() + first + k * vocab_size_ + slices_[r].begin);
      if (hidden != nullptr && dim > 0) {
        std::vector<float>& to = (*hidden)[static_cast<size_t>(r)];
        to.insert(to.end(), from + width, from + width + dim);
      }
    }
  }
  return OkStatus();
}

}  // namespace lockstep
