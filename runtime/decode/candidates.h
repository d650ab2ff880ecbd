// What a rank offers for one row, and how all ranks pick the same token from all offers. Pure
// functions; the exchange itself is in sampler.h.
//
// Logits never travel whole: a rank offers the best entries of its own vocabulary slice and a
// partial log-sum-exp. The union of the best K of every slice holds the best K of the whole
// vocabulary, so greedy needs K = 1, unrestricted sampling K = 1 (the best after the noise), top-k
// needs K = k. Where top-p or min-p might reach further than the offers, Decide says so and the row
// is gathered whole.
//
// The number of ranks cannot move a result: sums of exponentials are exact integers on a fixed grid
// (ExpSum), so no order and no cut changes them; everything else is a comparison of values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "runtime/base/bytes.h"
#include "runtime/base/status.h"
#include "runtime/decode/sampling_params.h"

namespace lockstep {

// The vocabulary rows [begin, end) that a rank holds.
struct VocabSlice {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
};

struct Candidate {
  int32_t id = 0;
  float raw = 0;     // the model's logit
  double score = 0;  // after penalties and bias; for unrestricted sampling also divided by T and
                     // with the noise
  // Best first; ties by lower id.
  bool Before(const Candidate& other) const {
    return score != other.score ? score > other.score : id < other.id;
  }
};

// A sum of exponentials whose bits depend on the set of its terms alone, not on their order nor on
// how they were split into partial sums: each term, rounded to 53 bits, is cut at the fixed
// positions 32 * k of the binary point, and the pieces are added as integers. Kept are the highest
// position that a term reaches and the two below it: 2^-64 of the largest term and more.
// (The idea is the reproducible summation of Demmel and Nguyen, 2013.)
struct ExpSum {
  static constexpr int kPieces = 3;
  double top = -1.0 / 0.0;        // the highest position, an integer; no terms: -inf
  uint64_t pieces[kPieces] = {};  // value = sum of pieces[i] * 2^(32 * (top - i)); below 2^31 terms
  void Add(double exponent);      // the term exp(exponent); the exponent is finite
  void Add(const ExpSum& part);   // all terms of another sum
  double Scaled() const;          // value / 2^(32 * top); no terms: 0
  double Log() const;             // no terms: -inf
  void Raise(double new_top);     // drops what falls below the kept positions
};

struct TokenLogprob {
  int32_t id = 0;
  double logprob = 0;
  bool operator==(const TokenLogprob&) const = default;
};

// A chosen token. Log-probabilities are those of the model's own distribution: before penalties,
// bias, temperature and masks, over all vocab_size rows of the head, as vLLM reports them. Ids that
// are no tokens are left out of `best`.
struct SampledToken {
  int32_t id = -1;
  double logprob = 0;              // 0 unless asked for
  std::vector<TokenLogprob> best;  // the n most likely, best first
};

// One rank's offer for one row.
struct RowOffer {
  std::vector<Candidate> candidates;  // best first
  bool truncated = false;             // the slice has tokens that are not among them
  ExpSum tempered;                    // over score / T; only for restricted sampling
  ExpSum raw_sum;                     // over the raw logits; only with logprobs
  std::vector<Candidate> raw_best;    // the best by raw logit (score == raw); only with logprobs
};

// Most candidates a rank offers: all of top-k up to here, and the head of a top-p or min-p
// distribution.
inline constexpr int64_t kMaxCandidates = 256;
inline constexpr int64_t kOpenCandidates = 128;

int64_t CandidateCount(const SamplingParams& params);

// The bytes of an offer in the exchange: a function of the parameters, equal on all ranks.
size_t OfferBytes(const SamplingParams& params);
void EncodeOffer(const RowOffer& offer, const SamplingParams& params, std::span<std::byte> out);
Status DecodeOffer(std::span<const std::byte> bytes, const SamplingParams& params, RowOffer* offer);

// Picks the `limit` best scores of logits[i] for ids first_id + i, skipping values that are not
// finite; `offer` gets candidates (raw filled with the score) and truncated.
void SelectBest(std::span<const float> logits, int64_t first_id, int64_t limit,
                std::vector<Candidate>* best, bool* truncated);
// The best of logits / T + noise.
bool SelectPerturbed(std::span<const float> logits, int64_t first_id, double temperature,
                     uint64_t noise_key, Candidate* best);
// The sum of exp(value / T) over finite values.
ExpSum SumExponentials(std::span<const float> values, double temperature);

enum class Decision { kChosen, kNeedsAllLogits, kNoToken };

// The token that all offers, in rank order, decide on. `position` is the sampled token's position
// in its sequence. kNeedsAllLogits: the kept set may reach beyond the offers. kNoToken: no finite
// logit in the whole row.
Decision Decide(const SamplingParams& params, std::span<const RowOffer> offers, int64_t position,
                SampledToken* token);

}  // namespace lockstep
