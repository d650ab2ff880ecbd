// The probe prompt: a few short prompts whose logits tell whether a model that is loaded from files
// of ranks is the model that the files were made of. What is compared is a digest with a distance,
// since other numbers of ranks and other kernels give other last bits.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/kernels/backend.h"
#include "runtime/model/model.h"

namespace lockstep {

inline constexpr int64_t kProbePrompts = 4;
inline constexpr int64_t kProbeTokens = 4;  // in each
inline constexpr size_t kProbeTop = 4;
inline constexpr size_t kProbeProjections = 64;
inline constexpr char kProbeName[] = "probe.json";

// The limits of a model that shall compute nothing but the probe.
ModelLimits ProbeLimits();

// The logits of the last token of one prompt.
struct ProbeRow {
  std::vector<std::pair<int64_t, double>> top;  // the best kProbeTop ids, best first, for people
  double log_sum_exp = 0;                       // for people
  double deviation = 0;                         // standard deviation of the logits
  // Sums of the logits less their mean with fixed pseudo-random signs, each over the square root of
  // their number: the mean square of the differences of two rows' sums estimates the mean square of
  // the differences of all their logits, to about 9 %.
  std::vector<double> projections;
};
using ProbeDigest = std::vector<ProbeRow>;  // [kProbePrompts]

// Tokens follow from the size of the vocabulary alone.
std::vector<std::vector<int32_t>> ProbePromptsOf(int64_t vocab_size);

// All prompts as one batch, for a model with ProbeLimits. Its outputs are their last tokens.
Batch ProbeBatch(int64_t vocab_size);

// The digest of the logits of the prompts' last tokens, [kProbePrompts, vocab_size]; an error if
// they are not finite.
StatusOr<ProbeDigest> DigestProbe(const std::vector<float>& logits, int64_t vocab_size);

// Computes the probe with all ranks (collective); equal on all. Needs one KV block, one row and
// one output of the model, whose max_model_len is kProbeTokens at least; uses more where it has
// them. What it leaves in the cache is written over by whoever comes next.
StatusOr<ProbeDigest> ComputeProbe(Model& model, Group& group);

// Of every row the root mean square of the differences of the logits, over the recorded logits'
// standard deviation. Infinity where it cannot be said.
std::vector<double> ProbeDistances(const ProbeDigest& recorded, const ProbeDigest& computed);

// probe.json.
struct ProbeRecord {
  uint64_t settings = 0;     // of the set of files (ShardHeader)
  bool from_source = false;  // a witness against a wrong cut too
  std::string computed;      // by whom and how, for people
  ProbeDigest rows;          // with full precision
  // The largest of ProbeDistances when the same build computed the same weights with 8-bit
  // activations. Absent: not measured.
  std::optional<double> fast_distance;
};

std::string ProbeText(const ProbeRecord& record, int64_t vocab_size);
// `name` is the path, for errors. Everything is checked.
StatusOr<ProbeRecord> ParseProbe(const std::string& text, int64_t vocab_size,
                                 const std::string& name);

// How far rows may be from the recorded ones (docs/numerics.md says why): most of them `near`, so
// that one choice of nearly equal experts, which last bits may turn, is no fault; all of them
// `far`.
struct ProbeTolerance {
  double near = 0;
  double far = 0;
};
// What a run computes with, beyond which its logits may differ from full precision.
struct ProbeArithmetic {
  kernels::Precision precision = kernels::Precision::kExact;
  kernels::CacheType cache = kernels::CacheType::kF32;
  bool full() const {
    return precision == kernels::Precision::kExact && cache == kernels::CacheType::kF32;
  }
};
ProbeTolerance ToleranceOf(const ProbeRecord& record, const ProbeArithmetic& arithmetic);

// OK if the rows are near enough; else a ModelError that says which are not. `name` is the path of
// the record.
Status CompareProbe(const ProbeRecord& record, const ProbeDigest& computed,
                    const ProbeArithmetic& arithmetic, const std::string& name);

}  // namespace lockstep
