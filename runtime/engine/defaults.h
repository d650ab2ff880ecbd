// What a request gets where it says nothing.
#pragma once

#include <cstdint>

#include "runtime/decode/sampling_params.h"
#include "runtime/text/model_text.h"

namespace lockstep {

// generation_config.json over neutral values. The seed is 0: set it, or take FreshSeed().
SamplingParams DefaultSampling(const GenerationDefaults& defaults);

// A seed from the operating system.
uint64_t FreshSeed();

}  // namespace lockstep
