// The architectures that this build computes: one function each, defined in the file of that name.
#pragma once

#include <memory>

#include "runtime/model/model.h"
#include "runtime/weights/safetensors.h"

namespace lockstep {

// Where a model lives: all must outlive it.
struct ModelPlace {
  Group& group;
  const kernels::Backend& backend;
  ThreadPool& pool;
};

// glm4_moe.cc: GLM-4.5, 4.5-Air, 4.6, 4.7. Collective.
StatusOr<std::unique_ptr<Model>> LoadGlm4Moe(ModelConfig config, const Checkpoint& checkpoint,
                                             const LoadOptions& options, const ModelPlace& place);

}  // namespace lockstep
