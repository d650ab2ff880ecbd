// What a rank holds and reads of a model, layer by layer, as the code that loads it counts.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/model/config.h"
#include "runtime/model/shape.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep::planner {

// Bytes in memory, in the portable layout (tensor/weight_format.h).
struct LayerBytes {
  uint64_t always = 0;   // what every row reads
  uint64_t experts = 0;  // of all routed experts, of which a row reads some
};

struct RankBytes {
  uint64_t embedding = 0;  // a row reads nothing of it
  uint64_t head = 0;       // with the final norm
  std::vector<LayerBytes> layers;
  LayerBytes draft;  // the layer for drafts and what joins its inputs; held only where it is used

  uint64_t weights() const;  // without `draft`
};

// Of every layer the first one that is made of the same shapes in the same formats.
std::vector<int64_t> FirstOfKind(const ModelConfig& config, const Checkpoint& checkpoint);

// Of `rank` under these cuts; `kinds` as FirstOfKind has them: of each kind one layer is counted.
// Where the files have no layer for drafts, it is taken to be like the last one, and what joins its
// inputs to be BF16. Tensors that are missing are errors where they are looked at.
StatusOr<RankBytes> CountBytes(const ModelConfig& config, const Checkpoint& checkpoint,
                               const Cuts& cuts, int rank, const std::vector<int64_t>& kinds);

// What is computed for one row: of products two operations a parameter, and attention.
struct RowWork {
  double layer_parameters = 0;        // of all layers together, of routed experts the chosen
  double head_parameters = 0;         // rows whose logits are wanted alone
  double attention_per_position = 0;  // operations for each position that a row reads
};
RowWork WorkOf(const ModelConfig& config);

// Bytes of the checkpoint's files, but for their headers.
uint64_t FileBytes(const Checkpoint& checkpoint);

// How many of `experts` are read for so many rows, each of which chooses `chosen` of them: the mean
// where every expert is as likely. Rows may be a fraction.
double DistinctExperts(double experts, double chosen, double rows);

}  // namespace lockstep::planner
