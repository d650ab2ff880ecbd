// `lockstep simulate`: how a cluster, or many behind a router, answer a trace of requests.
#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "launcher/commands/asked_trace.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/plan_question.h"
#include "launcher/commands/simulate_report.h"
#include "launcher/memory.h"
#include "launcher/session.h"
#include "launcher/simulate/simulation.h"
#include "runtime/base/largest.h"
#include "runtime/planner/seats.h"

namespace lockstep {
namespace {

bool IsTensor(const planner::CountedModel& model) { return model.shares.size() > 1; }

// How many of `load.users` sequences of the whole context have room beside the weights.
int64_t SequencesThatFit(const PlanQuestion& question, const planner::Load& load) {
  const std::vector<planner::Seat> seats = IsTensor(question.model)
                                               ? planner::TensorSlices(question.model)
                                               : planner::WholeModel(question.model);
  const planner::Node& node = question.hardware.node;
  const double available = (node.memory_gib.value + node.slow_gib.value) * 1024 * 1024 * 1024;
  return LargestThatFits(1, load.users, [&](int64_t users) {
    return std::all_of(seats.begin(), seats.end(), [&](const planner::Seat& seat) {
      return static_cast<double>(planner::MemoryOf(seat, load, users, load.context).total()) <=
             available;
    });
  });
}

Status CheckSimulated(const Options& options, const PlanQuestion& question) {
  if (options.mode == "pipeline")
    return UsageError("simulate knows no pipelines yet: leave --mode out, or ask `lockstep plan`");
  if (!options.draft_acceptance.empty())
    return UsageError("simulate knows no drafts, which lockstep does not make yet");
  if (!question.hardware.node.tops.known() || !question.engine.arithmetic_share.known()) {
    return UsageError(
        "how fast prompts are computed is not known: give the node's 'tops', --measured with what "
        "`lockstep bench prefill --json` prints, or an --engine of which it is known");
  }
  return OkStatus();
}

// What a replica's scheduler is told, as `serve` would tell it.
StatusOr<SchedulerLimits> DecideLimits(const Options& options, const PlanQuestion& question,
                                       const planner::Load& load, SimulationReport* report) {
  const int64_t sequences = SequencesThatFit(question, load);
  if (sequences < 1) {
    planner::Load one = load;
    one.users = 1;
    const planner::Answer answer =
        planner::Predict(question.model, question.hardware, question.engine, one);
    return UsageError("%s", (IsTensor(question.model) ? answer.tensor : answer.single).reason);
  }
  if (sequences < load.users) {
    report->memory = absl::StrFormat("KV cache for %d of %d sequences of %d tokens", sequences,
                                     load.users, load.context);
  }
  SchedulerLimits limits;
  limits.max_sequences = load.users;
  limits.max_rows = load.chunk + load.users;
  limits.max_outputs = load.users;
  limits.prefill_rows = load.chunk;
  limits.prefill_rows_alone = load.chunk;
  limits.max_model_len = load.context;
  limits.kv_blocks = sequences * BlocksOf(load.context);
  limits.prefix_cache = options.prefix_cache;
  return limits;
}

}  // namespace

Status SimulateCommand(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(PlanQuestion question, ReadPlanQuestion(options));
  LOCKSTEP_RETURN_IF_ERROR(CheckSimulated(options, question));
  const ModelConfig& config = question.model.config;
  Options asked = options;
  asked.users = options.max_num_seqs;
  asked.prompt_tokens.clear();
  LOCKSTEP_ASSIGN_OR_RETURN(asked.context, MaxModelLen(options, config));
  LOCKSTEP_ASSIGN_OR_RETURN(const planner::Load load,
                            DecideLoad(asked, question.engine, config.max_position_embeddings));
  LOCKSTEP_RETURN_IF_ERROR(CheckSizes(question.model, load));
  SimulationReport report;
  report.model = question.name;
  report.weights = options.weights;
  SimulationOptions& simulation = report.options;
  LOCKSTEP_ASSIGN_OR_RETURN(simulation.limits, DecideLimits(options, question, load, &report));
  simulation.prefill_delay_s = static_cast<double>(options.prefill_delay_ms) * 1e-3;
  simulation.replicas = static_cast<int>(options.replicas);
  simulation.affinity = options.router == "prefix";
  simulation.seed = static_cast<uint64_t>(options.seed.value_or(1));
  simulation.vocab_size = config.vocab_size;
  LOCKSTEP_ASSIGN_OR_RETURN(const AskedTrace trace,
                            FindTrace(options, simulation.seed, load.context));
  report.trace = trace.name;
  report.offered_s = trace.requests.back().at_s;
  LOCKSTEP_ASSIGN_OR_RETURN(
      const std::unique_ptr<StepModel> steps,
      StepModel::Create({std::move(question.model), question.hardware, question.engine, load,
                         simulation.replicas, simulation.seed},
                        question.measured.tests));
  report.steps = steps.get();
  LOCKSTEP_ASSIGN_OR_RETURN(report.result, Simulate(trace.requests, simulation, steps.get()));
  PrintSimulation(report, options);
  return OkStatus();
}

}  // namespace lockstep
