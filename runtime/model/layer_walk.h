// One batch through a model of which no more than one part is in memory at a time - the embedding,
// a layer, the head - by one process as the only rank: for a machine that the whole model does not
// fit. What is computed, and its bits, are those of Model::Step: Decoder has the forward pass.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/kernels/backend.h"
#include "runtime/model/config.h"
#include "runtime/model/model.h"
#include "runtime/model/shape.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep {

struct LayerWalkOptions {
  ModelLimits limits;
  // The batch meets every part once with each of them, the parts being read once: packed for the
  // first, whose precision is kExact, and packed again for the next (Backend::Repack). At least
  // one; all must outlive the walk.
  std::vector<const kernels::Backend*> backends;
  int threads = 1;
  // Called now and then with bytes of files, from the thread that runs; may be empty.
  std::function<void(const LoadProgress&)> progress;
  // Asked between the parts; true ends the work with InterruptedError. May be empty.
  std::function<bool()> stop;
};

// Known before anything large is read.
struct LayerWalkPlan {
  uint64_t memory_bytes = 0;  // at the worst moment
  std::string largest_part;   // what is in memory then: "layer 3", "the head"
  uint64_t file_bytes = 0;    // read from files in all
};

class LayerWalk {
 public:
  // `checkpoint` must outlive the walk. Tensors that are missing or contradict the configuration
  // are errors.
  static StatusOr<LayerWalk> Plan(const Checkpoint& checkpoint, LayerWalkOptions options);
  const LayerWalkPlan& plan() const { return plan_; }
  const ModelConfig& config() const { return config_; }

  // For every backend the logits [batch.output_rows.size(), vocab_size] of the batch, which keeps
  // the limits. `group` has this process alone, `pool` as many threads as the options say.
  StatusOr<std::vector<std::vector<float>>> Run(const Batch& batch, Group& group,
                                                ThreadPool& pool) const;

 private:
  LayerWalk(const Checkpoint& checkpoint, ModelConfig config, LayerWalkOptions options);
  MemoryPlan PlanBeside() const;
  Status CountPart(int64_t index, uint64_t* largest_bytes, uint64_t* work_bytes);

  const Checkpoint* checkpoint_;
  ModelConfig config_;
  Cuts cuts_;
  LayerWalkOptions options_;
  LayerWalkPlan plan_;
};

}  // namespace lockstep
