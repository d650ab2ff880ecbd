#include "runtime/model/probe.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "runtime/base/split_mix.h"

namespace lockstep {
namespace {

uint64_t Mix(uint64_t value) { return MixBits(value + kGoldenGamma); }
// Apart from the stream that chooses the tokens.
constexpr uint64_t kSignStream = uint64_t{1} << 40;

// Prompts [first, first + count) as one batch, of each the tokens [begin, end); those that end
// their prompt are outputs.
Batch BatchOf(const std::vector<std::vector<int32_t>>& prompts, size_t first, size_t count,
              int64_t begin, int64_t end) {
  Batch batch;
  for (size_t i = 0; i < count; ++i) {
    batch.block_tables.push_back({static_cast<int32_t>(i)});
    for (int64_t position = begin; position < end; ++position) {
      if (position == kProbeTokens - 1)
        batch.output_rows.push_back(static_cast<int32_t>(batch.rows()));
      batch.tokens.push_back(prompts[first + i][static_cast<size_t>(position)]);
      batch.positions.push_back(static_cast<int32_t>(position));
      batch.sequences.push_back(static_cast<int32_t>(i));
    }
  }
  return batch;
}

// The logits of the last token of every prompt, whole, on all ranks.
StatusOr<std::vector<float>> ProbeLogits(Model& model, Group& group) {
  const auto vocab = static_cast<size_t>(model.config().vocab_size);
  const ModelLimits& limits = model.limits();
  if (limits.max_model_len < kProbeTokens || limits.max_rows < 1)
    return InternalError("a probe of %d tokens was asked of a model for fewer", kProbeTokens);
  const auto prompts = ProbePromptsOf(model.config().vocab_size);
  // All at once if the limits allow it: a row has the same bits either way.
  const auto at_once = static_cast<size_t>(std::clamp<int64_t>(
      std::min({limits.max_rows / kProbeTokens, limits.max_outputs, limits.kv_blocks}), 1,
      kProbePrompts));
  const int64_t step = std::min(kProbeTokens, limits.max_rows);
  std::vector<float> logits(prompts.size() * vocab);
  for (size_t first = 0; first < prompts.size(); first += at_once) {
    const size_t count = std::min(at_once, prompts.size() - first);
    for (int64_t begin = 0; begin < kProbeTokens; begin += step) {
      const Batch batch =
          BatchOf(prompts, first, count, begin, std::min(kProbeTokens, begin + step));
      LOCKSTEP_ASSIGN_OR_RETURN(const StepOutput output, model.Step(batch));
      const auto width = static_cast<size_t>(output.vocab.size());
      for (size_t row = 0; row < static_cast<size_t>(output.outputs); ++row) {
        std::copy_n(output.logits.begin() + static_cast<std::ptrdiff_t>(row * width), width,
                    logits.begin() + static_cast<std::ptrdiff_t>((first + row) * vocab) +
                        output.vocab.begin);
      }
    }
  }
  // Every rank has zeros where the others have their rows of the vocabulary.
  if (group.size() > 1) LOCKSTEP_RETURN_IF_ERROR(AllReduceSum(group, logits));
  return logits;
}

ProbeRow DigestRow(const float* logits, int64_t vocab) {
  ProbeRow row;
  double sum = 0;
  std::vector<int64_t> order;
  for (int64_t id = 0; id < vocab; ++id) {
    sum += logits[id];
    order.push_back(id);
  }
  const double mean = sum / static_cast<double>(vocab);
  const size_t top = std::min(kProbeTop, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(),
                    [&](int64_t a, int64_t b) {
                      return logits[a] > logits[b] || (logits[a] == logits[b] && a < b);
                    });
  for (size_t i = 0; i < top; ++i) row.top.emplace_back(order[i], logits[order[i]]);
  row.projections.assign(kProbeProjections, 0);
  const double largest = row.top.empty() ? 0 : row.top.front().second;
  double squares = 0, exponentials = 0;
  for (int64_t id = 0; id < vocab; ++id) {
    const double value = logits[id] - mean;
    squares += value * value;
    exponentials += std::exp(logits[id] - largest);
    uint64_t signs = Mix(kSignStream + static_cast<uint64_t>(id));
    for (double& projection : row.projections) {
      projection += (signs & 1) != 0 ? value : -value;
      signs >>= 1;
    }
  }
  const double root = std::sqrt(static_cast<double>(vocab));
  for (double& projection : row.projections) projection /= root;
  row.deviation = std::sqrt(squares) / root;
  row.log_sum_exp = largest + std::log(exponentials);
  return row;
}

}  // namespace

ModelLimits ProbeLimits() {
  return {.max_rows = kProbePrompts * kProbeTokens,
          .max_outputs = kProbePrompts,
          .max_model_len = kProbeTokens,
          .kv_blocks = kProbePrompts};
}

std::vector<std::vector<int32_t>> ProbePromptsOf(int64_t vocab_size) {
  std::vector<std::vector<int32_t>> prompts(kProbePrompts);
  uint64_t index = 0;
  for (std::vector<int32_t>& prompt : prompts) {
    for (int64_t i = 0; i < kProbeTokens; ++i)
      prompt.push_back(static_cast<int32_t>(Mix(index++) % static_cast<uint64_t>(vocab_size)));
  }
  return prompts;
}

Batch ProbeBatch(int64_t vocab_size) {
  return BatchOf(ProbePromptsOf(vocab_size), 0, kProbePrompts, 0, kProbeTokens);
}

StatusOr<ProbeDigest> DigestProbe(const std::vector<float>& logits, int64_t vocab_size) {
  // Before anything is sorted by them. Equal on all ranks, and so is this error.
  const bool finite =
      std::all_of(logits.begin(), logits.end(), [](float value) { return std::isfinite(value); });
  if (!finite) return ModelError("the logits of the probe prompt are not finite");
  ProbeDigest digest;
  for (int64_t prompt = 0; prompt < kProbePrompts; ++prompt)
    digest.push_back(DigestRow(logits.data() + prompt * vocab_size, vocab_size));
  return digest;
}

StatusOr<ProbeDigest> ComputeProbe(Model& model, Group& group) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<float> logits, ProbeLogits(model, group));
  return DigestProbe(logits, model.config().vocab_size);
}

std::vector<double> ProbeDistances(const ProbeDigest& recorded, const ProbeDigest& computed) {
  std::vector<double> distances;
  for (size_t i = 0; i < recorded.size(); ++i) {
    double squares = 0;
    const bool same = i < computed.size() &&
                      computed[i].projections.size() == recorded[i].projections.size() &&
                      !recorded[i].projections.empty();
    for (size_t j = 0; same && j < recorded[i].projections.size(); ++j) {
      const double difference = computed[i].projections[j] - recorded[i].projections[j];
      squares += difference * difference;
    }
    const double distance = std::sqrt(squares / static_cast<double>(std::max<size_t>(
                                                    1, recorded[i].projections.size()))) /
                            std::max(recorded[i].deviation, 1e-30);
    distances.push_back(same && std::isfinite(distance) ? distance
                                                        : std::numeric_limits<double>::infinity());
  }
  return distances;
}

namespace {

// Three times what each type of cache moved the logits of the tests' models by (docs/numerics.md);
// of f16, which moved them least, eight times.
double CacheDistance(kernels::CacheType cache) {
  switch (cache) {
    case kernels::CacheType::kF32:
      return 0;
    case kernels::CacheType::kF16:
      return 0.005;
    case kernels::CacheType::kBF16:
      return 0.02;
    case kernels::CacheType::kQ8:
      break;
  }
  return 0.06;
}

}  // namespace

ProbeTolerance ToleranceOf(const ProbeRecord& record, const ProbeArithmetic& arithmetic) {
  constexpr double kExactNear = 1e-4, kExactFar = 0.25;
  // Another number of ranks may round activations elsewhere, which is as far from the recorded rows
  // as what was measured (docs/numerics.md has the figures); twice that for rows less lucky.
  constexpr double kTimesMeasured = 2, kLeastFast = 0.02, kMostFast = 0.6, kFastUnknown = 0.3;
  const double cache = CacheDistance(arithmetic.cache);
  if (arithmetic.precision == kernels::Precision::kExact)
    return {kExactNear + cache, kExactFar + cache};
  const double fast =
      record.fast_distance.has_value()
          ? std::clamp(kTimesMeasured * *record.fast_distance, kLeastFast, kMostFast)
          : kFastUnknown;
  return {fast + cache, std::max(fast, kExactFar) + cache};
}

Status CompareProbe(const ProbeRecord& record, const ProbeDigest& computed,
                    const ProbeArithmetic& arithmetic, const std::string& name) {
  const ProbeTolerance tolerance = ToleranceOf(record, arithmetic);
  const std::vector<double> distances = ProbeDistances(record.rows, computed);
  size_t near = 0, worst = 0;
  for (size_t i = 0; i < distances.size(); ++i) {
    near += distances[i] <= tolerance.near ? 1 : 0;
    if (distances[i] > distances[worst]) worst = i;
  }
  if (2 * near >= distances.size() && !distances.empty() && distances[worst] <= tolerance.far)
    return OkStatus();
  const auto best = [&](const ProbeDigest& rows) {
    return worst < rows.size() && !rows[worst].top.empty()
               ? absl::StrFormat("%d (%.4f)", rows[worst].top[0].first, rows[worst].top[0].second)
               : std::string("none");
  };
  return ModelError(
      "the logits of the probe prompt differ from those in %s: prompt %d by %.2g of their "
      "deviation "
      "(best token %s, recorded %s), and %d of %d prompts by more than %.2g; these files would "
      "answer wrong: compare all ranks' files with lockstep verify, or run lockstep shard again",
      name, worst, distances.empty() ? 0.0 : distances[worst], best(computed), best(record.rows),
      distances.size() - near, distances.size(), tolerance.near);
}

}  // namespace lockstep
