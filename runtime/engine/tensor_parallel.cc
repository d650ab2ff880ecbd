#include "runtime/engine/tensor_parallel.h"

#include <algorithm>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/clock.h"
#include "runtime/base/digest.h"

namespace lockstep {
namespace {

constexpr size_t kPlanLimitBytes = size_t{64} << 20;

uint64_t Chain(uint64_t digest, uint64_t value) { return DigestOf(&value, 1, digest); }

// What must fit together before the first plan.
struct Introduction {
  VocabSlice slice;
  ModelLimits limits;
  bool draft_layer = false;
  uint64_t constraints = 0;  // their digest
};

Status CheckIntroductions(const std::vector<Introduction>& all,
                          const std::vector<std::string>& names, int64_t vocab_size) {
  int64_t next = 0;
  for (size_t r = 0; r < all.size(); ++r) {
    const ModelLimits &mine = all[0].limits, &other = all[r].limits;
    if (mine.max_rows != other.max_rows || mine.max_outputs != other.max_outputs ||
        mine.max_model_len != other.max_model_len || mine.kv_blocks != other.kv_blocks) {
      return UsageError(
          "%s has other limits than rank 0: rows %d and %d, outputs %d and %d, context %d and %d, "
          "KV blocks %d and %d; "
          "start all ranks for the same command with the same --max-model-len, --max-num-seqs and "
          "--prefill-chunk",
          names[r], other.max_rows, mine.max_rows, other.max_outputs, mine.max_outputs,
          other.max_model_len, mine.max_model_len, other.kv_blocks, mine.kv_blocks);
    }
    if (mine.cache_type != other.cache_type) {
      return UsageError(
          "%s keeps its KV cache as %s, rank 0 as %s; start all ranks with the same "
          "--kv-cache-dtype",
          names[r], kernels::NameOf(other.cache_type), kernels::NameOf(mine.cache_type));
    }
    if (all[0].draft_layer != all[r].draft_layer) {
      return UsageError(
          "%s has %s draft layer, unlike rank 0; start all ranks with the same --draft", names[r],
          all[r].draft_layer ? "a" : "no");
    }
    if (all[0].constraints != 0 && all[0].constraints != all[r].constraints) {
      return UsageError(
          "%s %s, unlike rank 0; give all ranks the same tokenizer, and build lockstep on all "
          "nodes "
          "after deploy/install_xgrammar.sh or on none",
          names[r],
          all[r].constraints == 0 ? "is built without structured output" : "has another tokenizer");
    }
    if (all[r].slice.begin != next || all[r].slice.end < next) {
      return InternalError("%s holds the vocabulary rows %d .. %d, but the ranks before end at %d",
                           names[r], all[r].slice.begin, all[r].slice.end, next);
    }
    next = all[r].slice.end;
  }
  if (next != vocab_size)
    return InternalError("the ranks hold %d rows of a vocabulary of %d", next, vocab_size);
  return OkStatus();
}

}  // namespace

StatusOr<std::unique_ptr<TensorParallelExecutor>> TensorParallelExecutor::Create(
    Model& model, Group& group, VocabSlice slice, std::vector<std::string> rank_names,
    RankMeter* meter, TokenConstraints* constraints) {
  const Introduction mine = {slice, model.limits(), model.has_draft_layer(),
                             constraints == nullptr ? 0 : constraints->digest()};
  std::vector<Introduction> all(group.size());
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group, std::as_bytes(std::span<const Introduction>(&mine, 1)),
                                     std::as_writable_bytes(std::span(all))));
  LOCKSTEP_RETURN_IF_ERROR(CheckIntroductions(all, rank_names, model.config().vocab_size));
  std::vector<VocabSlice> slices;
  for (const Introduction& rank : all) slices.push_back(rank.slice);
  return std::unique_ptr<TensorParallelExecutor>(new TensorParallelExecutor(
      model, group, std::move(slices), std::move(rank_names), meter, constraints));
}

TensorParallelExecutor::TensorParallelExecutor(Model& model, Group& group,
                                               std::vector<VocabSlice> slices,
                                               std::vector<std::string> rank_names,
                                               RankMeter* meter, TokenConstraints* constraints)
    : model_(model),
      group_(group),
      meter_(meter),
      slices_(std::move(slices)),
      table_(model.limits(), model.config().vocab_size, slices_[group.rank()], constraints),
      sampler_(group, slices_, std::move(rank_names)) {}

// Whoever cannot go on tells the others at once, so that they stop waiting for it.
Status TensorParallelExecutor::Fail(const Status& status) {
  group_.Abort(status);
  return status;
}

Status TensorParallelExecutor::Execute(const StepPlan& plan, StepOutcome* outcome) {
  LOCKSTEP_CHECK(group_.rank() == 0);
  EncodePlan(plan, &message_);
  if (message_.size() > kPlanLimitBytes)
    return Fail(InternalError("a step plan of %d bytes", message_.size()));
  if (const Status sent = BroadcastMessage(group_, &message_, 0, Patience::kStep, kPlanLimitBytes);
      !sent.ok()) {
    return Fail(sent);
  }
  if (const Status done = RunStep(plan, Digest64(message_), outcome); !done.ok()) return Fail(done);
  return OkStatus();
}

StatusOr<std::vector<uint64_t>> TensorParallelExecutor::Stop(uint64_t step, ErrorKind reason) {
  StepPlan plan;
  plan.kind = PlanKind::kStop;
  plan.step = step;
  plan.reason = reason;
  EncodePlan(plan, &message_);
  LOCKSTEP_RETURN_IF_ERROR(
      BroadcastMessage(group_, &message_, 0, Patience::kStep, kPlanLimitBytes));
  return GatherDigests();
}

Status TensorParallelExecutor::RunWorker() {
  while (true) {
    LOCKSTEP_RETURN_IF_ERROR(
        BroadcastMessage(group_, &message_, 0, Patience::kIdle, kPlanLimitBytes));
    StatusOr<StepPlan> plan = DecodePlan(message_);
    if (!plan.ok()) return Fail(plan.status());
    if (plan->kind == PlanKind::kStop) {
      const StatusOr<std::vector<uint64_t>> digests = GatherDigests();
      if (!digests.ok()) return digests.status();
      return plan->reason == ErrorKind::kInterrupted ? InterruptedError() : OkStatus();
    }
    if (const Status done = RunStep(*plan, Digest64(message_), nullptr); !done.ok())
      return Fail(done);
  }
}

Status TensorParallelExecutor::RunStep(const StepPlan& plan, uint64_t plan_digest,
                                       StepOutcome* outcome) {
  LOCKSTEP_RETURN_IF_ERROR(table_.Apply(plan));
  const RankMeter::Exchanges before =
      meter_ != nullptr ? meter_->exchanges : RankMeter::Exchanges{};
  int64_t compute_ns = 0;
  StepOutput output;
  if (table_.batch().rows() > 0) {
    LOCKSTEP_ASSIGN_OR_RETURN(output, StepModel(&compute_ns));
    const VocabSlice mine = slices_[group_.rank()];
    if (output.outputs != static_cast<int64_t>(table_.outputs().size()) ||
        output.vocab.begin != mine.begin || output.vocab.end != mine.end) {
      return InternalError(
          "the model gave %d output rows of the vocabulary %d .. %d, not %d of %d .. %d",
          output.outputs, output.vocab.begin, output.vocab.end, table_.outputs().size(), mine.begin,
          mine.end);
    }
    model_digest_ = Chain(model_digest_, output.digest);
  }
  // The tokens of the step before are part of it: a rank that sampled differently is found out here
  // too.
  const uint64_t digest = Chain(Chain(model_digest_, token_digest_), plan_digest);
  LOCKSTEP_RETURN_IF_ERROR(Sample(plan, output, digest, outcome));
  if (meter_ != nullptr && plan.IsDecode()) {
    const RankMeter::Exchanges& after = meter_->exchanges;
    meter_->AddDecodeStep(compute_ns, {after.ns - before.ns, after.calls - before.calls});
  }
  LOCKSTEP_RETURN_IF_ERROR(GatherRaw(output, outcome));
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

Status TensorParallelExecutor::Sample(const StepPlan& plan, const StepOutput& output,
                                      uint64_t digest, StepOutcome* outcome) {
  const size_t width = static_cast<size_t>(slices_[group_.rank()].size());
  const std::vector<OutputRow>& outputs = table_.outputs();
  rows_.clear();
  if (outcome != nullptr) {
    outcome->slots.clear();
    outcome->too_slow.clear();
  }
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (outputs[i].kind != SpanOutput::kSample) continue;
    if (TokenConstraint* constraint = table_.sampler(outputs[i].slot).constraint()) {
      // A rank that allows other tokens is found out with this step.
      const std::span<const uint32_t> allowed = constraint->Allowed();
      digest = DigestOf(allowed.data(), allowed.size(), digest);
      if (outcome != nullptr && constraint->too_slow())
        outcome->too_slow.push_back(outputs[i].slot);
    }
    rows_.push_back({&table_.sampler(outputs[i].slot), output.logits.subspan(i * width, width),
                     outputs[i].position + 1});
    if (outcome != nullptr) outcome->slots.push_back(outputs[i].slot);
  }
  LOCKSTEP_RETURN_IF_ERROR(sampler_.Sample(rows_, {plan.step, digest}, &tokens_));
  size_t next = 0;
  for (const OutputRow& row : outputs) {
    if (row.kind != SpanOutput::kSample) continue;
    const int32_t token = tokens_[next++].id;
    table_.Append(row.slot, token);
    token_digest_ = Chain(token_digest_, static_cast<uint64_t>(token));
  }
  if (outcome != nullptr) outcome->tokens = tokens_;
  return OkStatus();
}

// Only `lockstep logits` wants raw rows.
Status TensorParallelExecutor::GatherRaw(const StepOutput& output, StepOutcome* outcome) {
  std::vector<size_t> raw;
  bool hidden = false;
  for (size_t i = 0; i < table_.outputs().size(); ++i) {
    const SpanOutput kind = table_.outputs()[i].kind;
    if (kind != SpanOutput::kNone && kind != SpanOutput::kSample) raw.push_back(i);
    hidden = hidden || kind == SpanOutput::kRawHidden || kind == SpanOutput::kRawDraft;
  }
  if (outcome != nullptr) outcome->raw_rows = static_cast<int64_t>(raw.size());
  const size_t dim = hidden ? static_cast<size_t>(model_.config().hidden_size) : 0;
  return GatherRows(output, raw, dim, outcome == nullptr ? nullptr : &outcome->raw_logits,
                    outcome == nullptr ? nullptr : &outcome->raw_hidden);
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
  if (outcome != nullptr) outcome->draft_logits.clear();
  if (rows.empty()) return OkStatus();
  batch.block_tables = step.block_tables;
  LOCKSTEP_ASSIGN_OR_RETURN(const StepOutput draft, model_.Draft(batch, hidden));
  model_digest_ = Chain(model_digest_, draft.digest);
  return GatherRows(draft, rows, 0, outcome == nullptr ? nullptr : &outcome->draft_logits, nullptr);
}

// Every other rank sends its slices (and hidden rows) to rank 0, one after the other.
Status TensorParallelExecutor::GatherRows(const StepOutput& output, const std::vector<size_t>& rows,
                                          size_t dim, std::vector<float>* logits,
                                          std::vector<std::vector<float>>* hidden) {
  if (rows.empty()) return OkStatus();
  const size_t vocab = static_cast<size_t>(model_.config().vocab_size);
  const size_t mine = static_cast<size_t>(slices_[group_.rank()].size());
  packed_.resize(rows.size() * (mine + dim));
  for (size_t k = 0; k < rows.size(); ++k) {
    float* to = packed_.data() + k * (mine + dim);
    std::copy_n(output.logits.data() + rows[k] * mine, mine, to);
    if (dim > 0) std::copy_n(output.hidden.data() + rows[k] * dim, dim, to + mine);
  }
  if (group_.rank() != 0) return group_.Send(0, std::as_bytes(std::span<const float>(packed_)));
  logits->resize(rows.size() * vocab);
  if (hidden != nullptr)
    hidden->assign(dim > 0 ? group_.size() : 0, std::vector<float>(rows.size() * dim));
  for (int r = 0; r < group_.size(); ++r) {
    const size_t width = static_cast<size_t>(slices_[r].size());
    if (r > 0) {
      packed_.resize(rows.size() * (width + dim));
      LOCKSTEP_RETURN_IF_ERROR(group_.Receive(r, std::as_writable_bytes(std::span(packed_))));
    }
    for (size_t k = 0; k < rows.size(); ++k) {
      const float* from = packed_.data() + k * (width + dim);
      std::copy_n(from, width, logits->data() + k * vocab + slices_[r].begin);
      if (dim > 0) std::copy_n(from + width, dim, (*hidden)[r].data() + k * dim);
    }
  }
  return OkStatus();
}

StatusOr<std::vector<uint64_t>> TensorParallelExecutor::GatherDigests() {
  std::vector<uint64_t> digests(group_.size());
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group_,
                                     std::as_bytes(std::span<const uint64_t>(&model_digest_, 1)),
                                     std::as_writable_bytes(std::span(digests))));
  return digests;
}

}  // namespace lockstep
