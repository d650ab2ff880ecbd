// What hardware with which model: `lockstep plan` and `lockstep simulate` are told by the same
// flags.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "launcher/measured.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/planner/predict.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep {

struct PlanQuestion {
  std::string name;  // of the model, as it was named
  Measured measured;
  planner::Hardware hardware;  // with what was measured over it
  planner::Engine engine;
  std::unique_ptr<Checkpoint> checkpoint;
  planner::CountedModel model;  // for as many ranks as `hardware` has nodes
};

StatusOr<PlanQuestion> ReadPlanQuestion(const Options& options);

// What the command line does not say is as `engine` does it.
StatusOr<planner::Load> DecideLoad(const Options& options, const planner::Engine& engine,
                                   int64_t most_positions);

// A config.json may name any sizes: no number of bytes may overflow.
Status CheckSizes(const planner::CountedModel& model, const planner::Load& load);

}  // namespace lockstep
