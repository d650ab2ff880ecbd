#include "launcher/simulate/simulation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <set>
#include <utility>

#include "launcher/simulate/replica.h"
#include "launcher/simulate/router.h"
#include "runtime/base/check.h"

namespace lockstep {
namespace {

// The engine takes times of 0 for none.
constexpr int64_t kBeginNs = 1'000'000'000;

// What happens next among all replicas.
class Events {
 public:
  Events(const std::vector<TraceRequest>& trace, const SimulationOptions& options, StepModel* steps)
      : trace_(trace), options_(options), router_(options.replicas, options.affinity) {
    for (int number = 0; number < options.replicas; ++number)
      replicas_.push_back(std::make_unique<Replica>(options, number, steps, &clock_, &history_));
  }

  // Idle time is skipped: the clock goes from event to event.
  StatusOr<SimulationResult> Run() {
    size_t next = 0;
    while (next < trace_.size() || !ends_.empty()) {
      const int64_t arrival_ns =
          next < trace_.size() ? TimeOf(trace_[next]) : std::numeric_limits<int64_t>::max();
      if (!ends_.empty() && ends_.begin()->first < arrival_ns) {
        LOCKSTEP_RETURN_IF_ERROR(EndStep());
      } else {
        LOCKSTEP_RETURN_IF_ERROR(Arrive(arrival_ns, next++));
      }
    }
    return Gather();
  }

 private:
  static int64_t TimeOf(const TraceRequest& request) {
    return kBeginNs + std::llround(request.at_s * 1e9);
  }

  Status Arrive(int64_t at_ns, size_t number) {
    clock_.Set(at_ns);
    const TraceRequest& request = trace_[number];
    const int chosen = router_.Choose(request.prefix_group);
    Replica& replica = *replicas_[static_cast<size_t>(chosen)];
    std::string refusal;
    if (!replica.Submit(request, PromptOf(request, number, options_.seed, options_.vocab_size),
                        &refusal)) {
      if (result_.refusal.empty()) result_.refusal = refusal;
      return OkStatus();
    }
    router_.Begin(chosen, request.prompt_tokens + request.output_tokens);
    return replica.busy() ? OkStatus() : BeginStep(chosen);
  }

  Status EndStep() {
    const auto [at_ns, number] = *ends_.begin();
    ends_.erase(ends_.begin());
    clock_.Set(at_ns);
    last_ns_ = at_ns;
    // The clients know only now what ended in it.
    router_.End(number, replicas_[static_cast<size_t>(number)]->EndStep());
    return BeginStep(number);
  }

  Status BeginStep(int number) {
    Replica& replica = *replicas_[static_cast<size_t>(number)];
    LOCKSTEP_ASSIGN_OR_RETURN(const int64_t end_ns, replica.BeginStep());
    if (end_ns < 0) return OkStatus();
    ends_.insert({end_ns, number});
    return OkStatus();
  }

  SimulationResult Gather() {
    for (const std::unique_ptr<Replica>& replica : replicas_) {
      const SimulatedTraffic& one = replica->Finish();
      LOCKSTEP_CHECK(one.completed + one.rejected + one.refused == one.requests);
      SimulatedTraffic& all = result_.all;
      for (uint64_t SimulatedTraffic::*const count :
           {&SimulatedTraffic::requests, &SimulatedTraffic::completed, &SimulatedTraffic::rejected,
            &SimulatedTraffic::refused, &SimulatedTraffic::prompt_tokens,
            &SimulatedTraffic::cached_tokens, &SimulatedTraffic::output_tokens,
            &SimulatedTraffic::preemptions, &SimulatedTraffic::steps, &SimulatedTraffic::rows})
        all.*count += one.*count;
      all.busy_s += one.busy_s;
      all.besides_s += one.besides_s;
      all.parts = all.parts + one.parts;
      all.first_token.Add(one.first_token);
      all.inter_token.Add(one.inter_token);
      all.queue.Add(one.queue);
      result_.replicas.push_back(one);
    }
    result_.seconds = static_cast<double>(std::max(last_ns_ - kBeginNs, int64_t{0})) * 1e-9;
    result_.digest = history_.Value();
    return std::move(result_);
  }

  const std::vector<TraceRequest>& trace_;
  const SimulationOptions& options_;
  VirtualClock clock_;
  DigestStream history_;
  Router router_;
  std::vector<std::unique_ptr<Replica>> replicas_;
  std::set<std::pair<int64_t, int>> ends_;  // of steps: when, and whose
  int64_t last_ns_ = kBeginNs;
  SimulationResult result_;
};

}  // namespace

StatusOr<SimulationResult> Simulate(const std::vector<TraceRequest>& trace,
                                    const SimulationOptions& options, StepModel* steps) {
  LOCKSTEP_CHECK(options.replicas > 0);
  return Events(trace, options, steps).Run();
}

}  // namespace lockstep
