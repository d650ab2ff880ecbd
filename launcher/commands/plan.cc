// `lockstep plan`: what hardware would give with a model, before it is bought or started.
#include "launcher/commands/commands.h"
#include "launcher/commands/plan_question.h"
#include "launcher/commands/plan_report.h"

namespace lockstep {

Status PlanCommand(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(PlanQuestion question, ReadPlanQuestion(options));
  const planner::CountedModel& model = question.model;
  PlanReport report;
  LOCKSTEP_ASSIGN_OR_RETURN(
      report.load, DecideLoad(options, question.engine, model.config.max_position_embeddings));
  LOCKSTEP_RETURN_IF_ERROR(CheckSizes(model, report.load));
  report.hardware = std::move(question.hardware);
  report.engine = std::move(question.engine);
  report.model = question.name;
  report.weights = options.weights;
  report.file_bytes = planner::FileBytes(*question.checkpoint);
  report.answer = planner::Predict(model, report.hardware, report.engine, report.load);
  PrintPlan(report, options);
  return OkStatus();
}

}  // namespace lockstep
