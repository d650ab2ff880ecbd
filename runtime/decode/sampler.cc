#include "runtime/decode/sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/decode/random.h"

namespace lockstep {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

// Whether a set of TokenConstraint::Allowed has the id.
bool Has(std::span<const uint32_t> allowed, int64_t id) {
  const auto word = static_cast<size_t>(id / 32);
  return word < allowed.size() && (allowed[word] >> (id % 32) & 1) != 0;
}

bool Holds(VocabSlice slice, int64_t id) { return id >= slice.begin && id < slice.end; }

}  // namespace

SequenceSampler::SequenceSampler(const SamplingParams& params, const TokenSet& tokens,
                                 VocabSlice slice, std::span<const int32_t> prompt,
                                 std::unique_ptr<TokenConstraint> constraint)
    : params_(params),
      thinking_(params.thinking, prompt),
      tokens_(tokens),
      slice_(slice),
      constraint_(std::move(constraint)) {
  for (const auto& [id, bias] : params_.logit_bias) {
    if (Holds(slice_, id)) bias_[id] = bias;
  }
  if (params_.repetition_penalty == 1.0) return;
  for (const int32_t token : prompt) {
    if (Holds(slice_, token)) seen_[token].in_prompt = true;
  }
}

void SequenceSampler::Append(int32_t token) {
  thinking_.Append(token);
  if (params_.penalized() && Holds(slice_, token)) ++seen_[token].in_output;
  if (constraint_ != nullptr) constraint_->Append(token);
}

void SequenceSampler::TakeBack(int32_t token) {
  LOCKSTEP_CHECK(constraint_ == nullptr);
  thinking_.TakeBack(token);
  if (!params_.penalized() || !Holds(slice_, token)) return;
  const auto seen = seen_.find(token);
  LOCKSTEP_CHECK(seen != seen_.end() && seen->second.in_output > 0);
  // The repetition penalty asks only whether an id is there: one that is nowhere must go.
  if (--seen->second.in_output == 0 && !seen->second.in_prompt) seen_.erase(seen);
}

void SequenceSampler::Adjust(std::span<float> logits) {
  raw_changed_.clear();
  const auto change = [&](int32_t id, float value) {
    float& logit = logits[id - slice_.begin];
    raw_changed_.try_emplace(id, logit);
    logit = value;
  };
  const float repetition = static_cast<float>(params_.repetition_penalty);
  for (const auto& [id, seen] : seen_) {
    float value = logits[id - slice_.begin];
    value = value > 0 ? value / repetition : value * repetition;
    if (seen.in_output > 0) {
      value -= static_cast<float>(params_.presence_penalty);
      value -= static_cast<float>(params_.frequency_penalty) * static_cast<float>(seen.in_output);
    }
    change(id, value);
  }
  for (const auto& [id, bias] : bias_) change(id, logits[id - slice_.begin] + bias);
  for (const int32_t id : tokens_.unknown) {
    if (Holds(slice_, id)) change(id, kMasked);
  }
  // Where a grammar forbids that end, there is no thinking to end.
  const int32_t end = params_.thinking.end;
  if (!thinking_.must_end()) return;
  if (constraint_ != nullptr && !Has(constraint_->Allowed(), end)) return;
  if (Holds(slice_, end)) raw_changed_.try_emplace(end, logits[end - slice_.begin]);
  std::fill(logits.begin(), logits.end(), kMasked);
  if (Holds(slice_, end)) logits[end - slice_.begin] = 0;
}

int64_t SequenceSampler::TokenRows() const {
  return std::clamp<int64_t>(tokens_.limit - slice_.begin, 0, slice_.size());
}

std::span<const float> SequenceSampler::Choices(std::span<const float> logits) {
  const int64_t tokens = TokenRows();
  logits = logits.first(tokens);
  if (constraint_ == nullptr) return logits;
  const std::span<const uint32_t> allowed = constraint_->Allowed();
  allowed_.assign(tokens, kMasked);
  for (int64_t id = slice_.begin; id < slice_.begin + tokens; ++id) {
    if (Has(allowed, id)) allowed_[id - slice_.begin] = logits[id - slice_.begin];
  }
  return allowed_;
}

float SequenceSampler::RawLogit(std::span<const float> logits, int32_t id) const {
  const auto changed = raw_changed_.find(id);
  return changed != raw_changed_.end() ? changed->second : logits[id - slice_.begin];
}

void SequenceSampler::MakeOffer(std::span<float> logits, int64_t position, RowOffer* offer) {
  LOCKSTEP_CHECK(static_cast<int64_t>(logits.size()) == slice_.size());
  *offer = RowOffer();
  const int64_t tokens = TokenRows();
  bool ignored = false;
  if (params_.logprobs >= 0) {
    offer->raw_sum = SumExponentials(logits, 1.0);
    const int64_t spare =
        static_cast<int64_t>(tokens_.unknown.size());  // those are taken out again below
    SelectBest(logits.first(tokens), slice_.begin, params_.logprobs + spare, &offer->raw_best,
               &ignored);
    std::erase_if(offer->raw_best, [&](const Candidate& entry) {
      return std::binary_search(tokens_.unknown.begin(), tokens_.unknown.end(), entry.id);
    });
    offer->raw_best.resize(std::min<size_t>(offer->raw_best.size(), params_.logprobs));
  }
  Adjust(logits);
  const std::span<const float> choices = Choices(logits);
  if (!params_.greedy() && !params_.restricted()) {
    Candidate best;
    const uint64_t key = NoiseKey(params_.seed, position);
    if (SelectPerturbed(choices, slice_.begin, params_.temperature, key, &best))
      offer->candidates = {best};
  } else {
    SelectBest(choices, slice_.begin, CandidateCount(params_), &offer->candidates,
               &offer->truncated);
    if (!params_.greedy()) offer->tempered = SumExponentials(choices, params_.temperature);
  }
  for (Candidate& candidate : offer->candidates) candidate.raw = RawLogit(logits, candidate.id);
}

void SequenceSampler::CopyChoices(std::span<const float> logits, std::span<float> out) const {
  const int64_t tokens = TokenRows();
  const std::span<const float> choices = constraint_ != nullptr ? allowed_ : logits;
  std::copy_n(choices.begin(), tokens, out.begin());
  std::fill(out.begin() + tokens, out.end(), kMasked);
}

int DisagreeingRank(std::span<const StepDigest> digests) {
  const auto equal = [](const StepDigest& a, const StepDigest& b) {
    return a.step == b.step && a.value == b.value;
  };
  size_t right = 0;
  std::ptrdiff_t most = 0;
  for (size_t r = 0; r < digests.size(); ++r) {
    const auto votes = std::count_if(digests.begin(), digests.end(), [&](const StepDigest& other) {
      return equal(digests[r], other);
    });
    if (votes > most) {
      most = votes;
      right = r;
    }
  }
  for (size_t r = 0; r < digests.size(); ++r) {
    if (!equal(digests[r], digests[right])) return static_cast<int>(r);
  }
  return -1;
}

TokenSampler::TokenSampler(Group& group, std::vector<VocabSlice> slices,
                           std::vector<std::string> rank_names)
    : group_(group), slices_(std::move(slices)), rank_names_(std::move(rank_names)) {
  LOCKSTEP_CHECK(static_cast<int>(slices_.size()) == group.size());
  LOCKSTEP_CHECK(static_cast<int>(rank_names_.size()) == group.size());
  for (const VocabSlice& slice : slices_) widest_slice_ = std::max(widest_slice_, slice.size());
}

Status TokenSampler::CheckDigests(size_t block_bytes, StepDigest mine) {
  std::vector<StepDigest> digests(group_.size());
  for (int r = 0; r < group_.size(); ++r)
    std::memcpy(&digests[r], all_.data() + r * block_bytes, sizeof(StepDigest));
  const int wrong = DisagreeingRank(digests);
  if (wrong < 0) return OkStatus();
  return PeerLostError(
      "%s computed other bits than the other ranks in step %d (digest %016x there, %016x on rank "
      "%d); its hardware or "
      "its build differs: compare `lockstep version` on all nodes and test that machine's memory",
      rank_names_[wrong], mine.step, digests[wrong].value,
      digests[wrong == 0 ? group_.size() - 1 : 0].value, wrong == 0 ? group_.size() - 1 : 0);
}

Status TokenSampler::Sample(std::span<SamplingRow> rows, StepDigest digest,
                            std::vector<SampledToken>* tokens) {
  size_t block_bytes = sizeof(StepDigest);
  for (const SamplingRow& row : rows) block_bytes += OfferBytes(row.sequence->params());
  mine_.resize(block_bytes);
  all_.resize(block_bytes * group_.size());
  std::memcpy(mine_.data(), &digest, sizeof(digest));
  size_t offset = sizeof(StepDigest);
  RowOffer offer;
  for (const SamplingRow& row : rows) {
    const SamplingParams& params = row.sequence->params();
    row.sequence->MakeOffer(row.logits, row.position, &offer);
    EncodeOffer(offer, params, std::span(mine_).subspan(offset, OfferBytes(params)));
    offset += OfferBytes(params);
  }
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group_, mine_, all_));
  LOCKSTEP_RETURN_IF_ERROR(CheckDigests(block_bytes, digest));

  tokens->assign(rows.size(), SampledToken());
  offers_.assign(rows.size(), std::vector<RowOffer>(group_.size()));
  std::vector<size_t> whole;
  offset = sizeof(StepDigest);
  for (size_t i = 0; i < rows.size(); ++i) {
    const SamplingParams& params = rows[i].sequence->params();
    const size_t bytes = OfferBytes(params);
    for (int r = 0; r < group_.size(); ++r) {
      LOCKSTEP_RETURN_IF_ERROR(DecodeOffer(std::span(all_).subspan(r * block_bytes + offset, bytes),
                                           params, &offers_[i][r]));
    }
    offset += bytes;
    const Decision decision = Decide(params, offers_[i], rows[i].position, &(*tokens)[i]);
    if (decision == Decision::kNeedsAllLogits) whole.push_back(i);
    if (decision == Decision::kNoToken)
      return InternalError("step %d: a row has no finite logit", digest.step);
  }
  if (!whole.empty()) LOCKSTEP_RETURN_IF_ERROR(GatherWholeRows(rows, whole, tokens));
  for (size_t i = 0; i < rows.size(); ++i) rows[i].sequence->Append((*tokens)[i].id);
  return OkStatus();
}

// Every rank sees the same offers, so all of them find the same rows here without a word more.
// Adjusted and raw logits travel for the whole slice, padded to the widest.
Status TokenSampler::GatherWholeRows(std::span<SamplingRow> rows, std::span<const size_t> wanted,
                                     std::vector<SampledToken>* tokens) {
  rows_gathered_whole_ += static_cast<int64_t>(wanted.size());
  const size_t width = static_cast<size_t>(widest_slice_);
  std::vector<float> mine(2 * width), all(2 * width * group_.size());
  for (const size_t i : wanted) {
    const std::span<const float> logits = rows[i].logits;
    const VocabSlice slice = slices_[group_.rank()];
    std::fill(mine.begin(), mine.end(), kMasked);
    rows[i].sequence->CopyChoices(logits, std::span(mine).first(logits.size()));
    for (size_t k = 0; k < logits.size(); ++k) {
      mine[width + k] = rows[i].sequence->RawLogit(logits, static_cast<int32_t>(slice.begin + k));
    }
    LOCKSTEP_RETURN_IF_ERROR(AllGather(group_, std::as_bytes(std::span<const float>(mine)),
                                       std::as_writable_bytes(std::span(all))));
    for (int r = 0; r < group_.size(); ++r) {
      const std::span<const float> adjusted =
          std::span(all).subspan(r * 2 * width, slices_[r].size());
      const std::span<const float> raw =
          std::span(all).subspan(r * 2 * width + width, slices_[r].size());
      std::vector<Candidate>& candidates = offers_[i][r].candidates;
      candidates.clear();
      offers_[i][r].truncated = false;
      for (size_t k = 0; k < adjusted.size(); ++k) {
        if (!std::isfinite(adjusted[k])) continue;
        candidates.push_back({static_cast<int32_t>(slices_[r].begin + k), raw[k], adjusted[k]});
      }
    }
    const SamplingParams& params = rows[i].sequence->params();
    LOCKSTEP_CHECK(Decide(params, offers_[i], rows[i].position, &(*tokens)[i]) ==
                   Decision::kChosen);
  }
  return OkStatus();
}

}  // namespace lockstep
