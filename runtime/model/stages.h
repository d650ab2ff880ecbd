// A pipeline's stages: each holds a contiguous range of the model's layers, the first one the
// embedding too and the last one the head.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/model/config.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/partition.h"

namespace lockstep {

// Micro-batches of rows that a stage holds beside the one that it computes, at most: on their way
// in and out.
inline constexpr size_t kStageBuffers = 6;

// Where a rank stands in a pipeline. One stage: the model is not parted by layers.
struct StagePlace {
  int stage = 0;
  std::vector<double> shares = {1};  // of the weights' bytes, one per stage
};

// Cuts the layers so that the stages' bytes come as near to `shares` as whole layers can, with at
// least one layer in each. `before` and `behind` are bytes that the first and the last stage hold
// besides.
StatusOr<std::vector<Range>> CutLayersByBytes(const std::vector<uint64_t>& layer_bytes,
                                              uint64_t before, uint64_t behind,
                                              const std::vector<double>& shares);

// The same for a checkpoint, by the bytes of its tensors in the portable layout, whatever the ranks
// and the backend: every rank finds the same.
StatusOr<std::vector<Range>> CutLayers(const ModelConfig& config, const Checkpoint& checkpoint,
                                       const std::vector<double>& shares);

}  // namespace lockstep
