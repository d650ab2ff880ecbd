// What `lockstep plan` prints.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/base/options.h"
#include "runtime/planner/predict.h"

namespace lockstep {

struct PlanReport {
  std::string model;    // as named
  std::string weights;  // as --weights; empty: those of the files
  uint64_t file_bytes = 0;
  planner::Hardware hardware;
  planner::Engine engine;
  planner::Load load;
  planner::Answer answer;
};

// One JSON object with --json, otherwise a table.
void PrintPlan(const PlanReport& report, const Options& options);

}  // namespace lockstep
