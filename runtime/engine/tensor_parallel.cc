#include "runtime/engine/tensor_parallel.h"

#include <algorithm>
#include <utility>

#include "runtime/base/clock.h"
#include "runtime/base/digest.h"
#include "runtime/base/log.h"
#include "runtime/engine/introduction.h"

namespace lockstep {

StatusOr<std::unique_ptr<TensorParallelExecutor>> TensorParallelExecutor::Create(
    Model& model, Group& group, VocabSlice slice, std::vector<std::string> rank_names,
    RankMeter* meter, TokenConstraints* constraints, std::unique_ptr<KeptCache> kept) {
  LOCKSTEP_ASSIGN_OR_RETURN(std::vector<VocabSlice> slices,
                            Introduce(model, group, slice, constraints, rank_names));
  std::unique_ptr<TensorParallelExecutor> executor(new TensorParallelExecutor(
      model, group, std::move(slices), std::move(rank_names), meter, constraints));
  LOCKSTEP_RETURN_IF_ERROR(executor->RestoreCache(std::move(kept)));
  return executor;
}

Status TensorParallelExecutor::RestoreCache(std::unique_ptr<KeptCache> kept) {
  const std::byte mine{kept != nullptr};
  std::vector<std::byte> keeps(static_cast<size_t>(group_.size()));
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group_, std::span(&mine, 1), keeps));
  // Another command of rank 0 than `serve` keeps nothing.
  if (keeps[0] == std::byte{0}) return OkStatus();
  const auto without = std::find(keeps.begin(), keeps.end(), std::byte{0}) - keeps.begin();
  if (without < group_.size()) {
    if (group_.rank() == 0) {
      log::Warning("prefix cache: nothing is kept over a restart: %s has no --prefix-cache-dir",
                   rank_names_[static_cast<size_t>(without)]);
    }
    return OkStatus();
  }
  kept_ = std::move(kept);
  LOCKSTEP_ASSIGN_OR_RETURN(restored_, kept_->Restore(model_, group_, rank_names_));
  table_.Restore(restored_);
  return OkStatus();
}

Status TensorParallelExecutor::SaveCache(const KeptBlocks& blocks) {
  if (kept_ == nullptr) return InternalError("step plan keeps blocks, and this rank keeps none");
  LOCKSTEP_RETURN_IF_ERROR(table_.CheckKept(blocks));
  return kept_->Save(blocks, model_, group_, rank_names_);
}

TensorParallelExecutor::TensorParallelExecutor(Model& model, Group& group,
                                               std::vector<VocabSlice> slices,
                                               std::vector<std::string> rank_names,
                                               RankMeter* meter, TokenConstraints* constraints)
    : GroupExecutor(group),
      model_(model),
      meter_(meter),
      slice_(slices[static_cast<size_t>(group.rank())]),
      rank_names_(rank_names),
      table_(model.limits(), model.config().vocab_size, slice_, constraints),
      end_(model.config(), group, std::move(slices), std::move(rank_names)) {}

Status TensorParallelExecutor::RunStep(const StepPlan& plan, uint64_t plan_digest,
                                       StepOutcome* outcome) {
  LOCKSTEP_RETURN_IF_ERROR(table_.Apply(plan));
  if (plan.kind == PlanKind::kSave) return SaveCache(plan.kept);
  const RankMeter::Exchanges before =
      meter_ != nullptr ? meter_->exchanges : RankMeter::Exchanges{};
  int64_t compute_ns = 0;
  StepOutput output;
  if (table_.batch().rows() > 0) {
    LOCKSTEP_ASSIGN_OR_RETURN(output, StepModel(&compute_ns));
    if (output.outputs != static_cast<int64_t>(table_.outputs().size()) ||
        output.vocab.begin != slice_.begin || output.vocab.end != slice_.end) {
      return InternalError(
          "the model gave %d output rows of the vocabulary %d .. %d, not %d of %d .. %d",
          output.outputs, output.vocab.begin, output.vocab.end, table_.outputs().size(),
          slice_.begin, slice_.end);
    }
    model_digest_ = ChainDigest(model_digest_, output.digest);
  }
  // The tokens of the step before are part of it: a rank that sampled differently is found out here
  // too.
  const uint64_t digest = ChainDigest(ChainDigest(model_digest_, end_.token_digest()), plan_digest);
  LOCKSTEP_RETURN_IF_ERROR(
      end_.Sample(table_, table_.outputs(), output, {plan.step, digest}, outcome));
  if (meter_ != nullptr && plan.IsDecode()) {
    const RankMeter::Exchanges& after = meter_->exchanges;
    meter_->AddDecodeStep(compute_ns, {after.ns - before.ns, after.calls - before.calls},
                          output.weight_bytes);
  }
  LOCKSTEP_RETURN_IF_ERROR(end_.GatherRaw(table_.outputs(), output, outcome));
  return DraftRaw(output, outcome);
}

StatusOr<StepOutput> TensorParallelExecutor::StepModel(int64_t* compute_ns) {
  const int64_t begin_ns = NowNs();
  const int64_t before_ns = meter_ != nullptr ? meter_->exchanges.ns : 0;
  StatusOr<StepOutput> output = model_.Step(table_.batch());
  const int64_t exchange_ns = meter_ != nullptr ? meter_->exchanges.ns - before_ns : 0;
  *compute_ns = NowNs() - begin_ns - exchange_ns;
  return output;
}

// A row drafts from the token behind it: the last one of a sequence cannot.
Status TensorParallelExecutor::DraftRaw(const StepOutput& output, StepOutcome* outcome) {
  const Batch& step = table_.batch();
  const int64_t dim = model_.config().hidden_size;
  Batch batch;
  std::vector<float> hidden;
  std::vector<size_t> rows;
  for (size_t i = 0; i < table_.outputs().size(); ++i) {
    const OutputRow& row = table_.outputs()[i];
    if (row.kind != SpanOutput::kRawDraft) continue;
    const int32_t next = table_.TokenAt(row.slot, row.position + 1);
    if (next < 0) continue;
    rows.push_back(rows.size());
    batch.output_rows.push_back(static_cast<int32_t>(batch.rows()));
    batch.tokens.push_back(next);
    batch.positions.push_back(static_cast<int32_t>(row.position));
    batch.sequences.push_back(step.sequences[step.output_rows[i]]);
    const auto state = output.hidden.begin() + static_cast<int64_t>(i) * dim;
    hidden.insert(hidden.end(), state, state + dim);
  }
  if (rows.empty()) return OkStatus();
  batch.block_tables = step.block_tables;
  LOCKSTEP_ASSIGN_OR_RETURN(const StepOutput draft, model_.Draft(batch, hidden));
  model_digest_ = ChainDigest(model_digest_, draft.digest);
  return end_.GatherRows(draft, rows, 0, outcome == nullptr ? nullptr : &outcome->draft_logits,
                         nullptr);
}

}  // namespace lockstep
