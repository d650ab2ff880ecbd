// Replicas of a cluster under a trace of requests: the real engine (queue, scheduler, prefix cache,
// prompt budget) of every replica, in turns, over steps that only let a virtual clock go on. The
// same trace and options give the same history.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launcher/percentiles.h"
#include "launcher/simulate/step_model.h"
#include "launcher/trace.h"
#include "runtime/base/status.h"
#include "runtime/engine/scheduler.h"

namespace lockstep {

struct SimulationOptions {
  SchedulerLimits limits;  // of each replica
  int64_t max_queue = 256;
  double prefill_delay_s = 0;
  int replicas = 1;
  bool affinity = false;  // Router's
  uint64_t seed = 1;
  int64_t vocab_size = 1;
};

// Of one replica, or of all together. Seconds are of the virtual clock.
struct SimulatedTraffic {
  uint64_t requests = 0;  // that came
  uint64_t completed = 0;
  uint64_t rejected = 0;  // by a full queue: HTTP's 429
  uint64_t refused = 0;   // that could never run: too long
  uint64_t prompt_tokens = 0, cached_tokens = 0, output_tokens = 0;  // of completed ones
  uint64_t preemptions = 0;
  uint64_t steps = 0, rows = 0;
  double busy_s = 0;
  double besides_s = 0;     // of that, StepCost::besides_s
  planner::Parts parts;     // of that
  Percentiles first_token;  // from arrival
  Percentiles inter_token;  // from one token of a request to its next
  Percentiles queue;        // from arrival to the first step with it
};

struct SimulationResult {
  SimulatedTraffic all;
  std::vector<SimulatedTraffic> replicas;
  double seconds = 0;   // from the beginning of the trace to the last token
  uint64_t digest = 0;  // of everything that happened, in order
  std::string refusal;  // why the first of those was refused
};

StatusOr<SimulationResult> Simulate(const std::vector<TraceRequest>& trace,
                                    const SimulationOptions& options, StepModel* steps);

}  // namespace lockstep
