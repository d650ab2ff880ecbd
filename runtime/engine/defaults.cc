#include "runtime/engine/defaults.h"

#include <random>

namespace lockstep {

SamplingParams DefaultSampling(const GenerationDefaults& defaults) {
  SamplingParams params;
  const bool greedy = defaults.do_sample.has_value() && !*defaults.do_sample;
  params.temperature = greedy ? 0.0 : defaults.temperature.value_or(1.0);
  params.top_k = defaults.top_k.value_or(0);
  params.top_p = defaults.top_p.value_or(1.0);
  params.min_p = defaults.min_p.value_or(0.0);
  params.repetition_penalty = defaults.repetition_penalty.value_or(1.0);
  return params;
}

uint64_t FreshSeed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace lockstep
