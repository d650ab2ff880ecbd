// How much memory models/tiny takes on one rank, to be asked in several ways.
#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "launcher/memory.h"

namespace lockstep::testing {

inline MemoryQuestion TinyQuestion() {
  const auto checkpoint =
      Checkpoint::Open(std::string(std::getenv("LOCKSTEP_SOURCE_DIR")) + "/models/tiny");
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  MemoryQuestion question;
  question.config = ConfigOf(**checkpoint).value();
  question.slice = PlanSlice(question.config, **checkpoint, {1}, 0).value();
  question.limits = {.max_rows = 64, .max_outputs = 4, .max_model_len = 4096, .kv_blocks = 4 * 256};
  return question;
}

}  // namespace lockstep::testing
