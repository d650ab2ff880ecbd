// The ranks of one way of dividing a model, and what each of them holds and does.
#pragma once

#include <vector>

#include "runtime/planner/predict.h"

namespace lockstep::planner {

struct Seat {
  ModelConfig config;  // of the layers that it holds
  Cuts cuts;
  int rank = 0;  // in `cuts`
  RankBytes bytes;
  // Its part of what is computed for a row, of products and of attention.
  double layer_work = 1;
  double head_work = 1;
  bool drafts = true;  // where the draft layer is, if there are drafts

  // Bytes of weights, the draft layer's among them if `load` has drafts.
  uint64_t WeightBytes(const Load& load) const;
};

std::vector<Seat> WholeModel(const CountedModel& model);
// Every rank computes a slice of every layer.
std::vector<Seat> TensorSlices(const CountedModel& model);
// Every rank computes some of the layers, cut by the shares; the first has the embedding, the last
// the head and the draft layer.
std::vector<Seat> PipelineStages(const CountedModel& model);

// The bytes that it needs for so many users of so many positions each.
MemoryPlan MemoryOf(const Seat& seat, const Load& load, int64_t users, int64_t context);
// Bytes of cache that a position takes in all its layers.
double CacheBytesOf(const Seat& seat, kernels::CacheType type);
// Bytes of all its layers.
LayerBytes LayersOf(const Seat& seat);
// Bytes that a step of so many rows reads of `layers`.
LayerBytes ReadsOf(const ModelConfig& config, const LayerBytes& layers, double rows);

}  // namespace lockstep::planner
