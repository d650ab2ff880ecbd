// One replica of a simulated cluster: a real engine whose steps are computed by nobody.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "launcher/simulate/simulation.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/executor.h"

namespace lockstep {

// Lets a clock go on for as long as a step takes, and gives every row that wants one a token.
class SimulatedExecutor final : public Executor {
 public:
  SimulatedExecutor(StepModel* steps, VirtualClock* clock, SimulatedTraffic* traffic)
      : steps_(steps), clock_(clock), traffic_(traffic) {}

  Status Execute(const StepPlan& plan, StepOutcome* outcome) override;
  StatusOr<std::vector<uint64_t>> Stop(uint64_t step, ErrorKind reason) override;

 private:
  StepModel* const steps_;
  VirtualClock* const clock_;
  SimulatedTraffic* const traffic_;
};

// Calls are made at the clock's time; the clock may be set to any between them.
class Replica {
 public:
  Replica(const SimulationOptions& options, int number, StepModel* steps, VirtualClock* clock,
          DigestStream* history);

  // False if the request was not taken: the reason is in `refusal`, empty where the queue is full.
  bool Submit(const TraceRequest& request, std::vector<int32_t> prompt, std::string* refusal);
  // Begins a step and gives its end; -1 where there is nothing to compute.
  StatusOr<int64_t> BeginStep();
  // The tokens, of prompt and answer together, of the requests that ended in it.
  int64_t EndStep() {
    busy_ = false;
    return std::exchange(ended_tokens_, 0);
  }
  bool busy() const { return busy_; }  // in a step
  // What came of everything, at the end.
  const SimulatedTraffic& Finish() {
    traffic_.preemptions = engine_.counts().preemptions;
    return traffic_;
  }

 private:
  struct Reader {
    std::shared_ptr<OutputStream> stream;
    int64_t submitted_ns = 0;
    int64_t last_ns = 0;
    int64_t tokens = 0;
  };
  void Read(uint64_t id);
  void Note(std::initializer_list<int64_t> what);

  const int number_;
  VirtualClock* const clock_;
  DigestStream* const history_;
  SimulatedTraffic traffic_;
  int64_t ended_tokens_ = 0;
  bool busy_ = false;
  std::unordered_map<uint64_t, Reader> readers_;
  SimulatedExecutor executor_;
  Engine engine_;  // the last: it reads what is above until it ends
};

}  // namespace lockstep
