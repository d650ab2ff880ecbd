#include "runtime/model/stages.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "runtime/model/weights.h"

namespace lockstep {

StatusOr<std::vector<Range>> CutLayersByBytes(const std::vector<uint64_t>& layer_bytes,
                                              uint64_t before, uint64_t behind,
                                              const std::vector<double>& shares) {
  const auto layers = static_cast<int64_t>(layer_bytes.size());
  const auto stages = static_cast<int64_t>(shares.size());
  if (layers < stages) {
    return UsageError(
        "a pipeline of %d stages needs as many layers, and the model has %d; use fewer --stages, "
        "or --mode tensor",
        stages, layers);
  }
  if (std::any_of(shares.begin(), shares.end(), [](double share) { return share <= 0; })) {
    return UsageError(
        "--shares gives a stage nothing, but every stage of a pipeline holds a layer; give it a "
        "share, or leave its rank out");
  }
  // ends[i]: bytes of what stands before layer i.
  std::vector<double> ends = {static_cast<double>(before)};
  for (const uint64_t bytes : layer_bytes) ends.push_back(ends.back() + static_cast<double>(bytes));
  const double total = ends.back() + static_cast<double>(behind);
  const double all = std::accumulate(shares.begin(), shares.end(), 0.0);
  std::vector<Range> ranges;
  int64_t begin = 0;
  double share = 0;
  for (int64_t stage = 0; stage < stages; ++stage) {
    share += shares[static_cast<size_t>(stage)];
    const int64_t most = layers - (stages - stage - 1);
    int64_t end = begin + 1;
    if (stage + 1 == stages) end = layers;
    const double wanted = total * share / all;
    const auto miss = [&](int64_t at) { return std::abs(ends[static_cast<size_t>(at)] - wanted); };
    while (end < most && miss(end + 1) < miss(end)) ++end;
    ranges.push_back({begin, end});
    begin = end;
  }
  return ranges;
}

StatusOr<std::vector<Range>> CutLayers(const ModelConfig& config, const Checkpoint& checkpoint,
                                       const std::vector<double>& shares) {
  const Cuts cuts = CutModel(config, {1}, CutUnitsOf(checkpoint));
  WeightReader counter(checkpoint, 0);
  LOCKSTEP_RETURN_IF_ERROR(LoadEmbedding(counter, config, cuts).status());
  const uint64_t before = counter.bytes();
  std::vector<uint64_t> layer_bytes;
  for (int64_t index = 0; index < config.num_hidden_layers; ++index) {
    const uint64_t start = counter.bytes();
    LOCKSTEP_RETURN_IF_ERROR(LoadLayer(counter, config, cuts, index).status());
    layer_bytes.push_back(counter.bytes() - start);
  }
  const uint64_t start = counter.bytes();
  LOCKSTEP_RETURN_IF_ERROR(LoadHead(counter, config, cuts).status());
  return CutLayersByBytes(layer_bytes, before, counter.bytes() - start, shares);
}

}  // namespace lockstep
