// The architectures that this build computes: one function each, defined in the file of that name.
#pragma once

#include <memory>

#include "runtime/model/model.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep {

// Where a model lives: all must outlive it.
struct ModelPlace {
  Group& group;
  const kernels::Backend& backend;
  ThreadPool& pool;
};

// glm4_moe.cc: GLM-4.5, 4.5-Air, 4.6, 4.7. Collective.
StatusOr<std::unique_ptr<Model>> LoadGlm4Moe(ModelConfig config, const Checkpoint& checkpoint,
                                             const SlicePlan& slice, const LoadOptions& options,
                                             const ModelPlace& place);

// glm4_moe_lite.cc: GLM-4.7-Flash. Collective.
StatusOr<std::unique_ptr<Model>> LoadGlm4MoeLite(ModelConfig config, const Checkpoint& checkpoint,
                                                 const SlicePlan& slice, const LoadOptions& options,
                                                 const ModelPlace& place);

}  // namespace lockstep
