#include "runtime/planner/seats.h"

#include <algorithm>
#include <utility>

namespace lockstep::planner {

uint64_t Seat::WeightBytes(const Load& load) const {
  const bool drafted = drafts && !load.draft_acceptance.empty();
  return bytes.weights() + (drafted ? bytes.draft.always + bytes.draft.experts : 0);
}

std::vector<Seat> WholeModel(const CountedModel& model) {
  return {{model.config, model.whole_cuts, 0, model.whole}};
}

std::vector<Seat> TensorSlices(const CountedModel& model) {
  double all = 0;
  for (const double share : model.shares) all += share;
  std::vector<Seat> seats;
  for (size_t rank = 0; rank < model.slices.size(); ++rank) {
    const double part = model.shares[rank] / all;
    seats.push_back(
        {model.config, model.cuts, static_cast<int>(rank), model.slices[rank], part, part});
  }
  return seats;
}

std::vector<Seat> PipelineStages(const CountedModel& model) {
  const int64_t layers = model.config.num_hidden_layers;
  const std::vector<Range> ranges = CutByShares(layers, model.shares);
  std::vector<Seat> seats;
  for (size_t rank = 0; rank < ranges.size(); ++rank) {
    const Range& range = ranges[rank];
    Seat seat{model.config, model.whole_cuts, 0, {}};
    seat.config.num_hidden_layers = range.size();
    seat.config.first_k_dense_replace =
        std::clamp<int64_t>(model.config.first_k_dense_replace - range.begin, 0, range.size());
    seat.bytes.layers.assign(model.whole.layers.begin() + range.begin,
                             model.whole.layers.begin() + range.end);
    if (rank == 0) seat.bytes.embedding = model.whole.embedding;
    const bool last = rank + 1 == ranges.size();
    if (last) seat.bytes.head = model.whole.head;
    seat.layer_work = static_cast<double>(range.size()) / static_cast<double>(layers);
    seat.head_work = last ? 1 : 0;
    seat.drafts = last;
    seat.bytes.draft = model.whole.draft;
    seats.push_back(std::move(seat));
  }
  return seats;
}

MemoryPlan MemoryOf(const Seat& seat, const Load& load, int64_t users, int64_t context) {
  ModelLimits limits;
  // A step may hold a chunk of a prompt beside the rows that continue all users.
  limits.max_rows = load.chunk + users * (1 + static_cast<int64_t>(load.draft_acceptance.size()));
  limits.max_outputs = users;
  limits.max_model_len = context;
  limits.kv_blocks = users * ((context + kBlockTokens - 1) / kBlockTokens);
  limits.cache_type = load.cache;
  SlicePlan slice;
  slice.cuts = seat.cuts;
  slice.weight_bytes = seat.WeightBytes(load);
  ModelConfig config = seat.config;
  // The draft layer has a cache as any other.
  if (seat.drafts && !load.draft_acceptance.empty()) ++config.num_hidden_layers;
  slice.cuts.layers = {0, config.num_hidden_layers};
  return PlanMemory(config, slice, limits, seat.rank, /*threads=*/1);
}

double CacheBytesOf(const Seat& seat, kernels::CacheType type) {
  const LocalShape shape = ShapeOf(seat.config, seat.cuts, seat.rank);
  return static_cast<double>(seat.config.num_hidden_layers) *
         static_cast<double>(CacheBytesPerToken(seat.config, shape, type));
}

LayerBytes LayersOf(const Seat& seat) {
  LayerBytes all;
  for (const LayerBytes& layer : seat.bytes.layers) {
    all.always += layer.always;
    all.experts += layer.experts;
  }
  return all;
}

LayerBytes ReadsOf(const ModelConfig& config, const LayerBytes& layers, double rows) {
  const auto experts = static_cast<double>(config.n_routed_experts);
  const double part =
      DistinctExperts(experts, static_cast<double>(config.num_experts_per_tok), rows) / experts;
  return {layers.always, static_cast<uint64_t>(part * static_cast<double>(layers.experts))};
}

}  // namespace lockstep::planner
