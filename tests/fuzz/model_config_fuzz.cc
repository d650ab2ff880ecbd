// Hostile config.json files.
#include <cstdint>
#include <string>

#include "runtime/model/config.h"
#include "runtime/model/model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(reinterpret_cast<const char*>(data), size);
  const auto config = lockstep::ParseModelConfig(text, "config.json");
  if (config.ok()) {
    const lockstep::ModelLimits limits{
        .max_rows = 8, .max_outputs = 8, .max_model_len = 64, .kv_blocks = 8};
    lockstep::SlicePlan slice;
    slice.cuts = lockstep::CutModel(*config, {1, 2});
    (void)lockstep::PlanMemory(*config, slice, limits, 0, 1);
  }
  return 0;
}
