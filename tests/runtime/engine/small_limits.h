// Limits that a test of the scheduler reaches soon.
#pragma once

#include "runtime/engine/scheduler.h"

namespace lockstep::testing {

inline SchedulerLimits SmallLimits() {
  return {.max_sequences = 4,
          .max_rows = 36,
          .max_outputs = 4,
          .prefill_rows = 32,
          .max_model_len = 256,
          .kv_blocks = 64};
}

}  // namespace lockstep::testing
