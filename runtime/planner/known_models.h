// Models whose shapes are known without their files, so that a cluster can be planned before
// anything is fetched.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep {

std::vector<std::string> KnownModels();   // "GLM-4.7", ...
std::vector<std::string> KnownWeights();  // "bf16", ..., "q4_k_m", ...

// The tensors that a published checkpoint of `model` in `weights` has, with config.json's text: a
// checkpoint of which nothing can be read, since no tensor has a file. Names are compared without
// regard to case, and "4.7" is GLM-4.7. The formats are those that the usual program makes, as
// docs/planner.md says; of files in Hugging Face's layout the draft layer (MTP) is there, in BF16.
StatusOr<std::unique_ptr<Checkpoint>> KnownModel(std::string_view model, std::string_view weights);

}  // namespace lockstep
