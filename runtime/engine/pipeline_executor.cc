#include "runtime/engine/pipeline_executor.h"

#include <algorithm>
#include <span>
#include <utility>

#include "runtime/base/log.h"
#include "runtime/engine/introduction.h"

namespace lockstep {
namespace {

// Of plans: a step may have more rows than a micro-batch.
ModelLimits PlanLimits(const Model& model, int64_t plan_rows) {
  ModelLimits limits = model.limits();
  limits.max_rows = std::max(limits.max_rows, plan_rows);
  return limits;
}

}  // namespace

StatusOr<std::unique_ptr<PipelineExecutor>> PipelineExecutor::Create(
    Model& model, Group& group, Group& stage_group, std::unique_ptr<StageLink> link,
    PipelineSetup setup) {
  const int width = stage_group.size();
  const int last = (setup.pipeline.stages - 1) * width;
  LOCKSTEP_ASSIGN_OR_RETURN(
      const std::vector<VocabSlice> all,
      Introduce(model, group, setup.slice, setup.constraints, setup.names, last));
  const auto mine = all.begin() + setup.pipeline.stage * width;
  return std::unique_ptr<PipelineExecutor>(
      new PipelineExecutor(model, group, stage_group, std::move(link),
                           std::vector<VocabSlice>(mine, mine + width), std::move(setup)));
}

PipelineExecutor::PipelineExecutor(Model& model, Group& group, Group& stage_group,
                                   std::unique_ptr<StageLink> link, std::vector<VocabSlice> slices,
                                   PipelineSetup setup)
    : GroupExecutor(group),
      model_(model),
      stage_group_(stage_group),
      link_(std::move(link)),
      setup_(std::move(setup)),
      pipeline_(model, *link_, setup_.pipeline),
      table_(PlanLimits(model, setup_.plan_rows), model.config().vocab_size, setup_.slice,
             setup_.constraints, pipeline_.last()),
      end_(model.config(), stage_group, std::move(slices),
           {setup_.names.begin() + setup_.pipeline.stage * stage_group.size(),
            setup_.names.begin() + (setup_.pipeline.stage + 1) * stage_group.size()}) {}

Status PipelineExecutor::Execute(const StepPlan& plan, StepOutcome* outcome) {
  StepPlan sent = plan;
  sent.sampled = sampled_;
  return GroupExecutor::Execute(sent, outcome);
}

Status PipelineExecutor::TakeSampled(const std::vector<int32_t>& sampled) {
  if (sampled.size() != sampled_slots_.size()) {
    return InternalError("step plan brings %d tokens of the step before, which gave %d",
                         sampled.size(), sampled_slots_.size());
  }
  const bool known = group_.rank() == 0 || pipeline_.last();
  if (known && sampled != sampled_)
    return InternalError("step plan brings other tokens than the last stage sampled");
  if (known) return OkStatus();
  for (size_t i = 0; i < sampled.size(); ++i) {
    if (sampled[i] < 0 || sampled[i] >= model_.config().vocab_size)
      return InternalError("step plan brings token %d", sampled[i]);
    table_.Append(sampled_slots_[i], sampled[i]);
  }
  return OkStatus();
}

Status PipelineExecutor::RunStep(const StepPlan& plan, uint64_t plan_digest, StepOutcome* outcome) {
  LOCKSTEP_RETURN_IF_ERROR(TakeSampled(plan.sampled));
  LOCKSTEP_RETURN_IF_ERROR(table_.Apply(plan));
  plan_digest_ = plan_digest;
  const RankMeter* meter = setup_.pipeline.meter;
  const RankMeter::Exchanges before = meter != nullptr ? meter->exchanges : RankMeter::Exchanges{};
  StepOutcome found;
  const auto ending = [&](const StepOutput& output, Range outputs) {
    return EndAtLastStage(plan.step, output, outputs, stage_group_.rank() == 0 ? &found : nullptr);
  };
  LOCKSTEP_RETURN_IF_ERROR(pipeline_.Run(plan.step, table_.batch(), ending, &model_digest_));
  LOCKSTEP_RETURN_IF_ERROR(FinishStep(plan, found, outcome));
  if (meter != nullptr && plan.IsDecode()) {
    const RankMeter::Exchanges& after = meter->exchanges;
    setup_.pipeline.meter->AddDecodeStep(
        pipeline_.step_compute_ns(),
        {after.ns - before.ns + pipeline_.step_wait_ns(), after.calls - before.calls},
        pipeline_.step_weight_bytes());
  }
  return OkStatus();
}

// The ranks of a stage compare what they hold with every micro-batch; of the others, with every
// step.
Status PipelineExecutor::EndAtLastStage(uint64_t step, const StepOutput& output, Range outputs,
                                        StepOutcome* outcome) {
  const uint64_t digest =
      ChainDigest(ChainDigest(model_digest_, end_.token_digest()), plan_digest_);
  const auto rows =
      std::span<const OutputRow>(table_.outputs())
          .subspan(static_cast<size_t>(outputs.begin), static_cast<size_t>(outputs.size()));
  LOCKSTEP_RETURN_IF_ERROR(end_.Sample(table_, rows, output, {step, digest}, outcome));
  return end_.GatherRaw(rows, output, outcome);
}

Status PipelineExecutor::FinishStep(const StepPlan& plan, const StepOutcome& found,
                                    StepOutcome* outcome) {
  const OutcomeShape shape = ShapeOfOutcome();
  sampled_slots_ = shape.slots;
  sampled_.clear();
  if (pipeline_.last()) {
    // TokenAt: what Sample has told the sequences.
    for (const OutputRow& row : table_.outputs()) {
      if (row.kind == SpanOutput::kSample)
        sampled_.push_back(table_.TokenAt(row.slot, row.position + 1));
    }
    if (stage_group_.rank() != 0) return OkStatus();
    return pipeline_.SendOutcome(plan.step, plan.rows(), EncodeOutcome(found));
  }
  const uint64_t digest = ChainDigest(model_digest_, plan_digest_);
  LOCKSTEP_RETURN_IF_ERROR(end_.Sample(table_, {}, {}, {plan.step, digest}, nullptr));
  if (group_.rank() != 0) return OkStatus();
  LOCKSTEP_RETURN_IF_ERROR(
      pipeline_.ReceiveOutcome(plan.step, plan.rows(), shape.most_bytes(), &message_));
  StatusOr<StepOutcome> received = DecodeOutcome(message_, shape);
  if (!received.ok()) {
    const int sender = (setup_.pipeline.stages - 1) * stage_group_.size();
    return WithLostRank(PeerLostError("%s %s", setup_.names[sender], MessageOf(received.status())),
                        sender);
  }
  *outcome = std::move(*received);
  for (size_t i = 0; i < outcome->slots.size(); ++i) {
    sampled_.push_back(outcome->tokens[i].id);
    table_.Append(outcome->slots[i], sampled_.back());
  }
  return OkStatus();
}

OutcomeShape PipelineExecutor::ShapeOfOutcome() const {
  OutcomeShape shape;
  shape.vocab_size = model_.config().vocab_size;
  shape.hidden_size = model_.config().hidden_size;
  for (const OutputRow& row : table_.outputs()) {
    if (row.kind == SpanOutput::kSample) shape.slots.push_back(row.slot);
    shape.raw_rows += row.kind == SpanOutput::kRaw || row.kind == SpanOutput::kRawHidden;
    if (row.kind == SpanOutput::kRawHidden) shape.hidden_ranks = stage_group_.size();
  }
  return shape;
}

Status PipelineExecutor::End() {
  std::vector<StageTimes> all(static_cast<size_t>(group_.size()));
  LOCKSTEP_RETURN_IF_ERROR(
      AllGather(group_, std::as_bytes(std::span<const StageTimes>(&pipeline_.times(), 1)),
                std::as_writable_bytes(std::span(all))));
  // Rank 0 is there from the plan to the outcome.
  if (group_.rank() != 0 || all[0].step_ns == 0) return OkStatus();
  std::string text;
  for (const StageTimes& rank : all) {
    text += absl::StrFormat(
        "%s%.0f %%", text.empty() ? "" : ", ",
        100 * static_cast<double>(rank.compute_ns) / static_cast<double>(all[0].step_ns));
  }
  log::Info("pipeline of %d stages over %s: the ranks computed %s of the steps' time",
            setup_.pipeline.stages, link_->name(), text);
  return OkStatus();
}

}  // namespace lockstep
