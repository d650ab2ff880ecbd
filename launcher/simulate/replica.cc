#include "launcher/simulate/replica.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace lockstep {
namespace {

EngineOptions OptionsOf(const SimulationOptions& options, const Clock* clock) {
  EngineOptions engine;
  engine.limits = options.limits;
  engine.vocab_size = options.vocab_size;
  engine.token_set.limit = static_cast<int32_t>(options.vocab_size);
  engine.max_queue = options.max_queue;
  engine.prefill_delay_s = options.prefill_delay_s;
  engine.stepped = true;
  engine.clock = clock;
  return engine;
}

double Seconds(int64_t from_ns, int64_t to_ns) {
  return static_cast<double>(to_ns - from_ns) * 1e-9;
}

}  // namespace

Status SimulatedExecutor::Execute(const StepPlan& plan, StepOutcome* outcome) {
  outcome->Clear();
  LOCKSTEP_ASSIGN_OR_RETURN(const StepCost cost, steps_->Cost(plan));
  clock_->Advance(std::max<int64_t>(1, std::llround(cost.total() * 1e9)));
  ++traffic_->steps;
  traffic_->rows += static_cast<uint64_t>(plan.rows());
  traffic_->busy_s += cost.total();
  traffic_->besides_s += cost.besides_s;
  traffic_->parts = traffic_->parts + cost.parts;
  for (const RowSpan& span : plan.spans) {
    if (span.output != SpanOutput::kSample) continue;
    outcome->slots.push_back(span.slot);
    outcome->tokens.push_back({.id = 0});
  }
  return OkStatus();
}

StatusOr<std::vector<uint64_t>> SimulatedExecutor::Stop(uint64_t /*step*/, ErrorKind /*reason*/) {
  return std::vector<uint64_t>{};
}

Replica::Replica(const SimulationOptions& options, int number, StepModel* steps,
                 VirtualClock* clock, DigestStream* history)
    : number_(number),
      clock_(clock),
      history_(history),
      executor_(steps, clock, &traffic_),
      engine_(OptionsOf(options, clock), &executor_) {}

void Replica::Note(std::initializer_list<int64_t> what) {
  history_->Add(std::as_bytes(std::span(what.begin(), what.size())));
}

bool Replica::Submit(const TraceRequest& request, std::vector<int32_t> prompt,
                     std::string* refusal) {
  ++traffic_.requests;
  Request asked;
  asked.prompt = std::move(prompt);
  asked.stop.max_tokens = request.output_tokens;
  asked.client = request.user;
  StatusOr<std::shared_ptr<OutputStream>> stream = engine_.Submit(std::move(asked));
  Note({number_, clock_->NowNs(), stream.ok() ? 1 : 0});
  if (!stream.ok()) {
    const bool full = absl::IsResourceExhausted(stream.status());
    ++(full ? traffic_.rejected : traffic_.refused);
    if (!full) *refusal = MessageOf(stream.status());
    return false;
  }
  const uint64_t id = (*stream)->id();
  readers_[id] = {*stream, clock_->NowNs(), 0, request.prompt_tokens + request.output_tokens};
  (*stream)->SetNotify([this, id] { Read(id); });
  return true;
}

// What came of a request, at the time when it came.
void Replica::Read(uint64_t id) {
  const auto found = readers_.find(id);
  if (found == readers_.end()) return;
  Reader& reader = found->second;
  const OutputDelta delta = reader.stream->Take();
  const int64_t now_ns = clock_->NowNs();
  for (size_t i = 0; i < delta.ids.size(); ++i) {
    if (reader.last_ns == 0) {
      traffic_.first_token.Add(Seconds(reader.submitted_ns, now_ns));
    } else {
      traffic_.inter_token.Add(Seconds(reader.last_ns, now_ns));
    }
    reader.last_ns = now_ns;
  }
  if (!delta.finished) return;
  const Summary& summary = reader.stream->summary();
  ++traffic_.completed;
  traffic_.prompt_tokens += static_cast<uint64_t>(summary.usage.prompt_tokens);
  traffic_.cached_tokens += static_cast<uint64_t>(summary.usage.cached_tokens);
  traffic_.output_tokens += static_cast<uint64_t>(summary.usage.completion_tokens);
  traffic_.queue.Add(summary.timings.queue_s);
  ended_tokens_ += reader.tokens;
  Note({number_, now_ns, static_cast<int64_t>(id), summary.usage.completion_tokens});
  readers_.erase(found);
}

StatusOr<int64_t> Replica::BeginStep() {
  const int64_t begin_ns = clock_->NowNs();
  const bool computed = engine_.Step();
  LOCKSTEP_RETURN_IF_ERROR(engine_.status());
  if (!computed) return int64_t{-1};
  busy_ = true;
  Note({number_, begin_ns, clock_->NowNs(), static_cast<int64_t>(traffic_.rows)});
  return clock_->NowNs();
}

}  // namespace lockstep
