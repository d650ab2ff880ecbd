#include "runtime/engine/plan.h"

#include <algorithm>
#include <limits>

#include "runtime/base/bytes.h"
#include "runtime/cache/chains.h"

namespace lockstep {
namespace {

constexpr uint32_t kMagic = 0x4E4C504C;  // "LPLN"

void PutSampling(const SamplingParams& params, ByteWriter* writer) {
  writer->Put(params.temperature);
  writer->Put(params.top_k);
  writer->Put(params.top_p);
  writer->Put(params.min_p);
  writer->Put(params.repetition_penalty);
  writer->Put(params.presence_penalty);
  writer->Put(params.frequency_penalty);
  writer->Put(params.seed);
  writer->Put(params.logprobs);
  writer->Put(params.thinking.tokens);
  writer->Put(params.thinking.begin);
  writer->Put(params.thinking.end);
  std::vector<int32_t> ids;
  std::vector<float> biases;
  for (const auto& [id, bias] : params.logit_bias) {
    ids.push_back(id);
    biases.push_back(bias);
  }
  writer->PutVector(ids);
  writer->PutVector(biases);
}

Status GetSampling(ByteReader* reader, SamplingParams* params) {
  params->temperature = reader->Get<double>();
  params->top_k = reader->Get<int64_t>();
  params->top_p = reader->Get<double>();
  params->min_p = reader->Get<double>();
  params->repetition_penalty = reader->Get<double>();
  params->presence_penalty = reader->Get<double>();
  params->frequency_penalty = reader->Get<double>();
  params->seed = reader->Get<uint64_t>();
  params->logprobs = reader->Get<int32_t>();
  params->thinking.tokens = reader->Get<int64_t>();
  params->thinking.begin = reader->Get<int32_t>();
  params->thinking.end = reader->Get<int32_t>();
  const std::vector<int32_t> ids = reader->GetVector<int32_t>();
  const std::vector<float> biases = reader->GetVector<float>();
  if (!reader->ok() || ids.size() != biases.size())
    return InternalError("step plan: malformed logit bias");
  for (size_t i = 0; i < ids.size(); ++i) params->logit_bias.emplace_back(ids[i], biases[i]);
  // The vocabulary is not known here; any non-negative id passes, the table compares it with the
  // slice.
  const Status valid = ValidateSamplingParams(*params, std::numeric_limits<int32_t>::max());
  return valid.ok() ? OkStatus() : InternalError("step plan: %s", MessageOf(valid));
}

// A count of items that each take at least one byte, so that a lying count cannot make us allocate.
uint32_t GetCount(ByteReader* reader, bool* failed) {
  const uint32_t count = reader->Get<uint32_t>();
  if (!reader->ok() || count > reader->remaining()) *failed = true;
  return *failed ? 0 : count;
}

Status GetStarted(ByteReader* reader, StepPlan* plan) {
  bool failed = false;
  const uint32_t count = GetCount(reader, &failed);
  for (uint32_t i = 0; i < count; ++i) {
    NewSequence sequence;
    sequence.slot = reader->Get<int32_t>();
    sequence.tokens = reader->GetVector<int32_t>();
    sequence.sampled = reader->Get<int32_t>();
    sequence.token_set.limit = reader->Get<int64_t>();
    sequence.token_set.unknown = reader->GetVector<int32_t>();
    LOCKSTEP_RETURN_IF_ERROR(GetSampling(reader, &sequence.params));
    sequence.shared = reader->GetVector<int32_t>();
    sequence.grammar = reader->GetString();
    if (sequence.grammar.size() > kMaxGrammarBytes)
      return InternalError("step plan: a grammar of %d bytes", sequence.grammar.size());
    plan->started.push_back(std::move(sequence));
  }
  return failed ? InternalError("step plan: malformed list of new sequences") : OkStatus();
}

Status GetSpans(ByteReader* reader, StepPlan* plan) {
  bool failed = false;
  const uint32_t count = GetCount(reader, &failed);
  for (uint32_t i = 0; i < count && reader->ok(); ++i) {
    RowSpan span;
    span.slot = reader->Get<int32_t>();
    span.begin = reader->Get<int32_t>();
    span.count = reader->Get<int32_t>();
    const uint8_t output = reader->Get<uint8_t>();
    if (span.begin < 0 || span.count < 1 || output > static_cast<uint8_t>(SpanOutput::kRawDraft)) {
      return InternalError("step plan: malformed rows (begin %d, count %d, output %d)", span.begin,
                           span.count, static_cast<int>(output));
    }
    span.output = static_cast<SpanOutput>(output);
    plan->spans.push_back(span);
  }
  return failed ? InternalError("step plan: malformed list of rows") : OkStatus();
}

void PutKept(const KeptBlocks& kept, ByteWriter* writer) {
  writer->Put(kept.save);
  writer->PutVector(kept.blocks);
  PutChains(kept.chains, writer);
}

Status GetKept(ByteReader* reader, KeptBlocks* kept) {
  kept->save = reader->Get<uint64_t>();
  kept->blocks = reader->GetVector<int32_t>();
  if (GetChains(reader, kMostKeptBlocks, &kept->chains) &&
      kept->chains.size() == kept->blocks.size())
    return OkStatus();
  return InternalError("step plan: malformed list of blocks to keep");
}

bool GivesToken(const RowSpan& span) {
  return span.count == 1 && span.output == SpanOutput::kSample;
}

}  // namespace

int64_t StepPlan::rows() const {
  int64_t rows = 0;
  for (const RowSpan& span : spans) rows += span.count;
  return rows;
}

int64_t StepPlan::prompt_rows() const {
  int64_t rows = 0;
  for (const RowSpan& span : spans) rows += GivesToken(span) ? 0 : span.count;
  return rows;
}

bool StepPlan::IsDecode() const {
  return !spans.empty() && std::all_of(spans.begin(), spans.end(), GivesToken);
}

void EncodePlan(const StepPlan& plan, std::vector<std::byte>* message) {
  ByteWriter writer;
  writer.Put(kMagic);
  writer.Put(plan.kind);
  writer.Put(plan.step);
  writer.Put(static_cast<uint8_t>(plan.reason));
  writer.PutVector(plan.sampled);
  writer.PutVector(plan.released);
  writer.Put(static_cast<uint32_t>(plan.started.size()));
  for (const NewSequence& sequence : plan.started) {
    writer.Put(sequence.slot);
    writer.PutVector(sequence.tokens);
    writer.Put(sequence.sampled);
    writer.Put(sequence.token_set.limit);
    writer.PutVector(sequence.token_set.unknown);
    PutSampling(sequence.params, &writer);
    writer.PutVector(sequence.shared);
    writer.PutString(sequence.grammar);
  }
  writer.Put(static_cast<uint32_t>(plan.growth.size()));
  for (const BlockGrowth& growth : plan.growth) {
    writer.Put(growth.slot);
    writer.PutVector(growth.blocks);
  }
  writer.Put(static_cast<uint32_t>(plan.spans.size()));
  for (const RowSpan& span : plan.spans) {
    writer.Put(span.slot);
    writer.Put(span.begin);
    writer.Put(span.count);
    writer.Put(static_cast<uint8_t>(span.output));
  }
  if (plan.kind == PlanKind::kSave) PutKept(plan.kept, &writer);
  *message = writer.bytes();
}

StatusOr<StepPlan> DecodePlan(std::span<const std::byte> message) {
  ByteReader reader(message);
  StepPlan plan;
  if (reader.Get<uint32_t>() != kMagic) return InternalError("step plan: this is no plan");
  const uint8_t kind = reader.Get<uint8_t>();
  if (kind < static_cast<uint8_t>(PlanKind::kStep) ||
      kind > static_cast<uint8_t>(PlanKind::kSave)) {
    return InternalError("step plan: unknown kind %d", static_cast<int>(kind));
  }
  plan.kind = static_cast<PlanKind>(kind);
  plan.step = reader.Get<uint64_t>();
  const uint8_t reason = reader.Get<uint8_t>();
  if (reason > static_cast<uint8_t>(ErrorKind::kInterrupted)) {
    return InternalError("step plan: unknown reason %d", static_cast<int>(reason));
  }
  plan.reason = static_cast<ErrorKind>(reason);
  plan.sampled = reader.GetVector<int32_t>();
  plan.released = reader.GetVector<int32_t>();
  LOCKSTEP_RETURN_IF_ERROR(GetStarted(&reader, &plan));
  bool failed = false;
  const uint32_t growing = GetCount(&reader, &failed);
  for (uint32_t i = 0; i < growing && reader.ok(); ++i) {
    const int32_t slot = reader.Get<int32_t>();
    plan.growth.push_back({slot, reader.GetVector<int32_t>()});
  }
  if (failed) return InternalError("step plan: malformed list of blocks");
  LOCKSTEP_RETURN_IF_ERROR(GetSpans(&reader, &plan));
  if (plan.kind == PlanKind::kSave) LOCKSTEP_RETURN_IF_ERROR(GetKept(&reader, &plan.kept));
  LOCKSTEP_RETURN_IF_ERROR(reader.Finish("step plan"));
  return plan;
}

}  // namespace lockstep
