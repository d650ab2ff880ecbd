#include "runtime/decode/candidates.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "runtime/base/check.h"
#include "runtime/decode/random.h"

namespace lockstep {
namespace {

constexpr size_t kHeaderBytes = 2 * sizeof(ExpSum) + 4 * sizeof(int32_t);
constexpr double kLog2E = 1.4426950408889634;
constexpr int kPieceBits = 32;
constexpr int kTermBits = 53;
constexpr double kTermScale = 0x1p52;
constexpr double kPieceScale = 0x1p-32;
// Above every float divided by a temperature; divided by one again it is still finite.
constexpr double kMostScore = 1e50;

struct OfferHeader {
  ExpSum tempered;
  ExpSum raw_sum;
  int32_t candidates = 0;
  int32_t raw_best = 0;
  int32_t truncated = 0;
  int32_t reserved = 0;
};
static_assert(sizeof(OfferHeader) == kHeaderBytes);
static_assert(sizeof(Candidate) == 16);

int64_t RawBestCount(const SamplingParams& params) { return std::max<int32_t>(params.logprobs, 0); }

void PutCandidates(const std::vector<Candidate>& candidates, std::byte* to) {
  // memcpy must not see the null pointer of an empty vector.
  if (!candidates.empty())
    std::memcpy(to, candidates.data(), candidates.size() * sizeof(Candidate));
}

std::vector<Candidate> Merge(std::span<const RowOffer> offers,
                             std::vector<Candidate> RowOffer::*list) {
  std::vector<Candidate> merged;
  for (const RowOffer& offer : offers) {
    merged.insert(merged.end(), (offer.*list).begin(), (offer.*list).end());
  }
  std::sort(merged.begin(), merged.end(),
            [](const Candidate& a, const Candidate& b) { return a.Before(b); });
  return merged;
}

// How many of the merged entries, from the best on, are certainly the best of the whole vocabulary:
// a rank that left tokens out may hide some right behind its last candidate.
size_t CompletePrefix(std::span<const RowOffer> offers, std::span<const Candidate> merged,
                      bool* everything) {
  *everything = true;
  size_t complete = merged.size();
  for (const RowOffer& offer : offers) {
    if (!offer.truncated || offer.candidates.empty()) continue;
    *everything = false;
    const Candidate& last = offer.candidates.back();
    const auto behind =
        std::upper_bound(merged.begin(), merged.end(), last,
                         [](const Candidate& a, const Candidate& b) { return a.Before(b); });
    complete = std::min(complete, static_cast<size_t>(behind - merged.begin()));
  }
  return complete;
}

// The length of the kept prefix after top-k, top-p and min-p; -1 if the offers do not reach far
// enough.
int64_t KeptCount(const SamplingParams& params, std::span<const RowOffer> offers,
                  std::span<const Candidate> merged) {
  bool everything = true;
  const int64_t complete = static_cast<int64_t>(CompletePrefix(offers, merged, &everything));
  const double best = merged.front().score / params.temperature;
  const auto tempered = [&](int64_t i) { return merged[i].score / params.temperature; };

  // `end`: how far the kept set may reach. `open`: tokens behind `end` might still belong to it.
  int64_t end = complete;
  bool open = !everything;
  if (params.top_k > 0 && params.top_k <= complete) {
    end = params.top_k;
    open = false;
  } else if (params.top_k > 0 && open) {
    return -1;
  }
  if (params.top_p < 1.0) {
    ExpSum total;
    if (params.top_k > 0) {
      for (int64_t i = 0; i < end; ++i) total.Add(tempered(i));
    } else {
      for (const RowOffer& offer : offers) total.Add(offer.tempered);
    }
    ExpSum mass;  // has the best term, so its scale is that of the total
    for (int64_t i = 0; i < end; ++i) {
      mass.Add(tempered(i));
      if (mass.Scaled() >= params.top_p * total.Scaled()) {
        end = i + 1;
        open = false;
        break;
      }
    }
  }
  if (params.min_p > 0.0) {
    const double threshold = best + std::log(params.min_p);
    for (int64_t i = 0; i < end; ++i) {
      if (tempered(i) < threshold) {
        end = i;
        open = false;
        break;
      }
    }
  }
  return open ? -1 : std::max<int64_t>(end, 1);
}

void FillLogprobs(const SamplingParams& params, std::span<const RowOffer> offers, float chosen_raw,
                  SampledToken* token) {
  ExpSum sum;
  for (const RowOffer& offer : offers) sum.Add(offer.raw_sum);
  const double normalizer = sum.Log();
  token->logprob = chosen_raw - normalizer;
  std::vector<Candidate> best = Merge(offers, &RowOffer::raw_best);
  best.resize(std::min<size_t>(best.size(), RawBestCount(params)));
  for (const Candidate& entry : best) token->best.push_back({entry.id, entry.score - normalizer});
}

}  // namespace

void ExpSum::Raise(double new_top) {
  const double distance = new_top - top;  // inf where there was no term
  if (!(distance > 0)) return;
  const int moved = static_cast<int>(std::min<double>(distance, kPieces));
  std::copy_backward(pieces, pieces + kPieces - moved, pieces + kPieces);
  std::fill(pieces, pieces + moved, 0);
  top = new_top;
}

void ExpSum::Add(double exponent) {
  // The term is mantissa * 2^lowest with 53 bits of mantissa, all in doubles: a score may be as
  // large as a float.
  const double binary = exponent * kLog2E;
  const double whole = std::floor(binary);
  const auto mantissa = static_cast<uint64_t>(std::exp2(binary - whole) * kTermScale);
  const double lowest = whole - (kTermBits - 1);
  const double position = std::floor(lowest / kPieceBits);
  const int shift = static_cast<int>(lowest - position * kPieceBits);
  const unsigned __int128 bits = static_cast<unsigned __int128>(mantissa) << shift;
  const int highest = bits >> (2 * kPieceBits) != 0 ? 2 : bits >> kPieceBits != 0 ? 1 : 0;
  Raise(position + highest);
  for (int i = 0; i <= highest; ++i) {
    const double below = top - (position + i);
    if (below >= kPieces) continue;
    pieces[static_cast<int>(below)] += static_cast<uint32_t>(bits >> (i * kPieceBits));
  }
}

void ExpSum::Add(const ExpSum& part) {
  Raise(part.top);
  for (int i = 0; i < kPieces; ++i) {
    const double below = top - part.top + i;
    if (below < kPieces) pieces[static_cast<int>(below)] += part.pieces[i];
  }
}

double ExpSum::Scaled() const {
  double value = 0;
  for (int i = kPieces - 1; i >= 0; --i)
    value = value * kPieceScale + static_cast<double>(pieces[i]);
  return value;
}

double ExpSum::Log() const { return std::log(Scaled()) + top * kPieceBits / kLog2E; }

int64_t CandidateCount(const SamplingParams& params) {
  if (params.greedy() || !params.restricted()) return 1;
  if (params.top_k > 0) return std::min(params.top_k, kMaxCandidates);
  return kOpenCandidates;
}

size_t OfferBytes(const SamplingParams& params) {
  return kHeaderBytes +
         static_cast<size_t>(CandidateCount(params) + RawBestCount(params)) * sizeof(Candidate);
}

void EncodeOffer(const RowOffer& offer, const SamplingParams& params, std::span<std::byte> out) {
  LOCKSTEP_CHECK(out.size() == OfferBytes(params));
  LOCKSTEP_CHECK(static_cast<int64_t>(offer.candidates.size()) <= CandidateCount(params));
  LOCKSTEP_CHECK(static_cast<int64_t>(offer.raw_best.size()) <= RawBestCount(params));
  std::memset(out.data(), 0, out.size());
  const OfferHeader header = {offer.tempered,
                              offer.raw_sum,
                              static_cast<int32_t>(offer.candidates.size()),
                              static_cast<int32_t>(offer.raw_best.size()),
                              offer.truncated ? 1 : 0,
                              0};
  std::memcpy(out.data(), &header, sizeof(header));
  std::byte* entries = out.data() + kHeaderBytes;
  PutCandidates(offer.candidates, entries);
  entries += CandidateCount(params) * sizeof(Candidate);
  PutCandidates(offer.raw_best, entries);
}

Status DecodeOffer(std::span<const std::byte> bytes, const SamplingParams& params,
                   RowOffer* offer) {
  if (bytes.size() != OfferBytes(params))
    return InternalError("candidate block has %d bytes", bytes.size());
  OfferHeader header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  if (header.candidates < 0 || header.candidates > CandidateCount(params) || header.raw_best < 0 ||
      header.raw_best > RawBestCount(params)) {
    return InternalError("candidate block claims %d candidates and %d log-probabilities",
                         header.candidates, header.raw_best);
  }
  offer->tempered = header.tempered;
  offer->raw_sum = header.raw_sum;
  offer->truncated = header.truncated != 0;
  offer->candidates.resize(header.candidates);
  offer->raw_best.resize(header.raw_best);
  const std::byte* entries = bytes.data() + kHeaderBytes;
  if (header.candidates > 0) {
    std::memcpy(offer->candidates.data(), entries, header.candidates * sizeof(Candidate));
  }
  entries += CandidateCount(params) * sizeof(Candidate);
  if (header.raw_best > 0)
    std::memcpy(offer->raw_best.data(), entries, header.raw_best * sizeof(Candidate));
  // No order and no sum holds with a NaN or an infinity.
  for (const auto* list : {&offer->candidates, &offer->raw_best}) {
    for (const Candidate& entry : *list) {
      if (!(std::abs(entry.score) <= kMostScore))
        return InternalError("candidate block gives token %d the score %g", entry.id, entry.score);
    }
  }
  return OkStatus();
}

void SelectBest(std::span<const float> logits, int64_t first_id, int64_t limit,
                std::vector<Candidate>* best, bool* truncated) {
  best->clear();
  *truncated = false;
  if (limit <= 0) return;
  // A heap with the worst kept entry in front. Ids ascend, so an equal score that comes later
  // loses.
  const auto before = [](const Candidate& a, const Candidate& b) { return a.Before(b); };
  float worst = -std::numeric_limits<float>::infinity();
  for (size_t i = 0; i < logits.size(); ++i) {
    const float value = logits[i];
    if (!(value > worst) || !std::isfinite(value)) {
      // Not better than the worst kept; while the heap is not full `worst` is -inf, so this is no
      // finite value.
      *truncated = *truncated || std::isfinite(value);
      continue;
    }
    if (static_cast<int64_t>(best->size()) == limit) {
      std::pop_heap(best->begin(), best->end(), before);
      best->pop_back();
      *truncated = true;
    }
    best->push_back({static_cast<int32_t>(first_id + static_cast<int64_t>(i)), value, value});
    std::push_heap(best->begin(), best->end(), before);
    if (static_cast<int64_t>(best->size()) == limit)
      worst = static_cast<float>(best->front().score);
  }
  std::sort_heap(best->begin(), best->end(), before);
}

bool SelectPerturbed(std::span<const float> logits, int64_t first_id, double temperature,
                     uint64_t noise_key, Candidate* best) {
  bool found = false;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (!std::isfinite(logits[i])) continue;
    const int64_t id = first_id + static_cast<int64_t>(i);
    const double value = logits[i] / temperature;
    const uint64_t bits = NoiseBits(noise_key, id);
    if (found && value < best->score) {
      // Gumbel(u) <= -log(1 - u), so to win, 1 - u must be below exp(value - best) <= 2^-gap: a
      // comparison of integers (with one bit to spare) that saves both logarithms for all but a few
      // tokens.
      const double gap = (best->score - value) * kLog2E - 1.0;
      if (gap >= 53.0) continue;
      const uint64_t tail = (uint64_t{1} << 52) - bits;  // (1 - u) * 2^52, rounded up
      if (gap > 0 && tail > (uint64_t{1} << (53 - static_cast<int>(gap)))) continue;
    }
    const double score = value + GumbelFromBits(bits);
    if (!found || score > best->score) {
      *best = {static_cast<int32_t>(id), logits[i], score};
      found = true;
    }
  }
  return found;
}

ExpSum SumExponentials(std::span<const float> values, double temperature) {
  ExpSum sum;
  for (const float value : values) {
    if (std::isfinite(value)) sum.Add(value / temperature);
  }
  return sum;
}

Decision Decide(const SamplingParams& params, std::span<const RowOffer> offers, int64_t position,
                SampledToken* token) {
  const std::vector<Candidate> merged = Merge(offers, &RowOffer::candidates);
  if (merged.empty()) return Decision::kNoToken;
  const Candidate* chosen = &merged.front();
  if (!params.greedy() && params.restricted()) {
    const int64_t kept = KeptCount(params, offers, merged);
    if (kept < 0) return Decision::kNeedsAllLogits;
    const uint64_t key = NoiseKey(params.seed, position);
    double best = 0;
    for (int64_t i = 0; i < kept; ++i) {
      const double score = merged[i].score / params.temperature + Gumbel(key, merged[i].id);
      if (i == 0 || score > best || (score == best && merged[i].id < chosen->id)) {
        best = score;
        chosen = &merged[i];
      }
    }
  }
  token->id = chosen->id;
  token->logprob = 0;
  token->best.clear();
  if (params.logprobs >= 0) FillLogprobs(params, offers, chosen->raw, token);
  return Decision::kChosen;
}

}  // namespace lockstep
