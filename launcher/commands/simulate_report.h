// What `lockstep simulate` prints.
#pragma once

#include <string>

#include "launcher/commands/plan_question.h"
#include "launcher/simulate/simulation.h"
#include "runtime/base/options.h"

namespace lockstep {

struct SimulationReport {
  std::string model;    // as named
  std::string weights;  // as --weights
  std::string trace;    // the file, or how it was made
  std::string memory;   // why fewer sequences than --max-num-seqs have room; empty: they have
  const StepModel* steps = nullptr;
  SimulationOptions options;
  SimulationResult result;
  double offered_s = 0;  // when the last request came
};

// What keeps it from being faster: "requests" where it waits for them a tenth of the time or more,
// otherwise what a step takes longest for.
std::string LimitedBy(const SimulationReport& report);

// One JSON object with --json, otherwise a table.
void PrintSimulation(const SimulationReport& report, const Options& options);

}  // namespace lockstep
