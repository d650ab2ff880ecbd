// The architectures that this build computes: one function each, defined in the file of that name.
#pragma once

#include <memory>

#include "runtime/model/model.h"
#include "runtime/model/weights.h"

namespace lockstep {

class Decoder;

// Where a model lives: all must outlive it.
struct ModelPlace {
  Group& group;
  const kernels::Backend& backend;
  ThreadPool& pool;
};

// model.cc: that of `config`, still without its cache and scratch (Decoder::Allocate).
std::unique_ptr<Decoder> MakeDecoder(ModelConfig config, const ModelLimits& limits,
                                     const LocalShape& shape, Weights weights,
                                     const ModelPlace& place);

// glm4_moe.cc: GLM-4.5, 4.5-Air, 4.6, 4.7.
std::unique_ptr<Decoder> MakeGlm4Moe(ModelConfig config, const ModelLimits& limits,
                                     const LocalShape& shape, Weights weights,
                                     const ModelPlace& place);

// glm4_moe_lite.cc: GLM-4.7-Flash.
std::unique_ptr<Decoder> MakeGlm4MoeLite(ModelConfig config, const ModelLimits& limits,
                                         const LocalShape& shape, Weights weights,
                                         const ModelPlace& place);

}  // namespace lockstep
