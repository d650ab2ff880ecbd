#include "runtime/engine/engine.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/base/log.h"
#include "runtime/engine/defaults.h"
#include "runtime/model/model.h"

namespace lockstep {
namespace {

constexpr int64_t kHealthPeriodNs = 100'000'000;

Status ShuttingDown() {
  return MakeError(ErrorKind::kRequest, absl::StatusCode::kUnavailable,
                   "the server is shutting down");
}

double Seconds(int64_t from_ns, int64_t to_ns) {
  return from_ns > 0 && to_ns > from_ns ? static_cast<double>(to_ns - from_ns) * 1e-9 : 0.0;
}

}  // namespace

Engine::Engine(EngineOptions options, Executor* executor)
    : options_(std::move(options)),
      executor_(executor),
      clock_(options_.clock != nullptr ? *options_.clock : Clock::Real()),
      scheduler_(options_.limits),
      prefill_budget_(options_.prefill_delay_s, options_.limits.prefill_rows) {
  load_.kv_blocks = options_.limits.kv_blocks;
  scheduler_.Restore(executor_->restored());
  if (options_.stepped) return;
  try {
    publisher_ = std::thread([this] { Publisher(); });
    loop_ = std::thread([this] { Loop(); });
  } catch (...) {
    (void)Stop(ErrorKind{0});
    throw;
  }
}

Engine::~Engine() { (void)Stop(ErrorKind{0}); }

Status Engine::Validate(const Request& request) const {
  if (!(request.weight >= kLeastWeight && request.weight <= kMostWeight)) {
    return RequestError("the weight is %g, but must be %g to %g", request.weight, kLeastWeight,
                        kMostWeight);
  }
  if (request.stop.max_tokens < 0) {
    return RequestError("max_tokens is %d, but must be at least 1", request.stop.max_tokens);
  }
  LOCKSTEP_RETURN_IF_ERROR(ValidateSamplingParams(request.sampling, options_.vocab_size));
  if (!request.grammar.empty()) {
    if (options_.constraints == nullptr) {
      return MakeError(ErrorKind::kRequest, absl::StatusCode::kFailedPrecondition,
                       "structured output was not built into this server: run "
                       "deploy/install_xgrammar.sh and build it again");
    }
    LOCKSTEP_RETURN_IF_ERROR(options_.constraints->Check(request.grammar));
  }
  for (const int32_t token : request.prompt) {
    if (token < 0 || token >= options_.vocab_size) {
      return RequestError("the prompt has token id %d, but the model's ids are 0 .. %d", token,
                          options_.vocab_size - 1);
    }
  }
  return OkStatus();
}

Status Engine::FitLocked(Request* request) const {
  const int64_t prompt = static_cast<int64_t>(request->prompt.size());
  const int64_t room = std::max<int64_t>(options_.limits.max_model_len - prompt, 1);
  int64_t& most = request->stop.max_tokens;
  most = most == 0 ? room : std::min(most, room);
  LOCKSTEP_RETURN_IF_ERROR(ValidateStopParams(request->stop, options_.vocab_size));
  return scheduler_.Admissible(prompt, most);
}

Status Engine::AcceptsLocked() const {
  LOCKSTEP_RETURN_IF_ERROR(failure_);
  if (draining_ || stopping_) return ShuttingDown();
  if (load_.waiting + static_cast<int64_t>(submitted_.size()) < options_.max_queue)
    return OkStatus();
  const int64_t seconds = ends_.SecondsFor(options_.max_queue, NowNs());
  return WithRetryAfter(
      MakeError(ErrorKind::kRequest, absl::StatusCode::kResourceExhausted,
                absl::StrFormat("%d requests are waiting already; try again in %d s",
                                options_.max_queue, seconds)),
      seconds);
}

Status Engine::Accepts() const {
  const std::lock_guard lock(mutex_);
  return AcceptsLocked();
}

StatusOr<std::shared_ptr<OutputStream>> Engine::Submit(Request request) {
  LOCKSTEP_RETURN_IF_ERROR(Validate(request));
  auto active = std::make_unique<Active>(Active{.matcher = StopMatcher(request.stop.texts)});
  active->usage.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  active->submitted_ns = NowNs();
  if (options_.make_decoder) active->decoder = options_.make_decoder();
  active->request = std::move(request);
  const std::lock_guard lock(mutex_);
  LOCKSTEP_RETURN_IF_ERROR(FitLocked(&active->request));
  LOCKSTEP_RETURN_IF_ERROR(AcceptsLocked());
  active->stream = std::make_shared<OutputStream>(next_id_++);
  std::shared_ptr<OutputStream> stream = active->stream;
  submitted_.push_back(std::move(active));
  ++open_;
  news_.notify_one();
  return stream;
}

void Engine::Cancel(uint64_t id, Status why) {
  const std::lock_guard lock(mutex_);
  cancelled_.emplace_back(id, std::move(why));
  news_.notify_one();
}

void Engine::Drain(int64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  draining_ = true;
  emptied_.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] { return open_ == 0; });
}

StatusOr<std::vector<uint64_t>> Engine::Stop(ErrorKind reason) {
  {
    const std::lock_guard lock(mutex_);
    if (!stopping_) stop_reason_ = reason;
    stopping_ = true;
    news_.notify_one();
  }
  if (loop_.joinable()) loop_.join();
  if (options_.stepped) (void)Step();
  {
    const std::lock_guard lock(publish_mutex_);
    publisher_done_ = true;
    publish_news_.notify_one();
  }
  if (publisher_.joinable()) publisher_.join();
  const std::lock_guard lock(mutex_);
  if (!failure_.ok()) return failure_;
  return digests_;
}

void Engine::ExplainFailure(const Status& why) {
  LOCKSTEP_CHECK(!why.ok());
  const std::lock_guard lock(mutex_);
  if (!failure_.ok()) failure_ = why;
}

void Engine::Resume(const SchedulerLimits& limits, Executor* executor) {
  loop_.join();
  const std::lock_guard lock(mutex_);
  LOCKSTEP_CHECK(!failure_.ok() && !stopping_ && active_.empty());
  options_.limits = limits;
  preempted_before_ = counts_.preemptions;
  scheduler_ = Scheduler(limits);
  scheduler_.Restore(executor->restored());
  prefill_budget_ = PrefillBudget(options_.prefill_delay_s, limits.prefill_rows);
  executor_ = executor;
  plan_ = {};
  outcome_ = {};
  next_health_ns_ = 0;
  cancelled_.clear();
  load_ = {.kv_blocks = limits.kv_blocks, .steps = load_.steps, .rows = load_.rows};
  last_step_ns_ = 0;
  failure_ = OkStatus();
  loop_ = std::thread([this] { Loop(); });
}

Status Engine::status() const {
  const std::lock_guard lock(mutex_);
  return failure_;
}

EngineLoad Engine::load() const {
  const std::lock_guard lock(mutex_);
  return load_;
}

EngineCounts Engine::counts() const {
  const std::lock_guard lock(mutex_);
  return counts_;
}

Status Engine::Readiness() const {
  const std::lock_guard lock(mutex_);
  LOCKSTEP_RETURN_IF_ERROR(failure_);
  if (draining_ || stopping_) return ShuttingDown();
  if (last_step_ns_ == 0 || NowNs() - last_step_ns_ > kReadyMs * 1'000'000) {
    return MakeError(ErrorKind::kRequest, absl::StatusCode::kUnavailable,
                     "the ranks have not ended a step for a minute");
  }
  return OkStatus();
}

bool Engine::Step() {
  LOCKSTEP_CHECK(options_.stepped);
  if (ended_) return false;
  const uint64_t before = plan_.step;
  ended_ = !Turn();
  std::unique_lock lock(publish_mutex_);
  NotifyReaders(&lock);
  return !ended_ && plan_.step != before;
}

void Engine::Loop() {
  while (Turn()) {
  }
}

bool Engine::Turn() {
  TakeNews();
  bool stopping;
  {
    const std::lock_guard lock(mutex_);
    stopping = stopping_;
  }
  if (stopping) {
    StopRanks();
    return false;
  }
  const int64_t now_ns = NowNs();
  if (options_.health && now_ns >= next_health_ns_) {
    next_health_ns_ = now_ns + kHealthPeriodNs;
    if (const Status health = options_.health(); !health.ok()) {
      FailAll(health);
      return false;
    }
  }
  bool any = scheduler_.Next(&plan_, prefill_budget_.rows());
  if (!any && ProbeIsDue()) {
    scheduler_.NextEmpty(&plan_);
    any = true;
  }
  {
    // What the plan admitted waits no longer: the step may be long.
    const std::lock_guard lock(mutex_);
    CountLoad();
    counts_.preemptions = preempted_before_ + static_cast<uint64_t>(scheduler_.preemptions());
  }
  if (any) {
    if (const Status done = RunPlan(plan_); !done.ok()) {
      FailAll(done);
      return false;
    }
    if (plan_.IsDecode()) {
      const std::lock_guard lock(mutex_);
      ++counts_.decode_steps;
      counts_.decode_tokens += plan_.spans.size();
      counts_.decode_ns += static_cast<uint64_t>(NowNs() - now_ns);
    }
    return true;
  }
  if (options_.stepped) return true;
  std::unique_lock lock(mutex_);
  news_.wait_for(lock, std::chrono::nanoseconds(kHealthPeriodNs),
                 [this] { return stopping_ || !submitted_.empty() || !cancelled_.empty(); });
  return true;
}

// With mutex_ held.
void Engine::CountLoad() {
  load_.waiting = scheduler_.waiting();
  load_.running = scheduler_.running();
  load_.kv_blocks_used = scheduler_.pool().used();
}

void Engine::StopRanks() {
  // What came in since: from now on Submit refuses, so nothing is left behind.
  TakeNews();
  std::vector<uint64_t> ids;
  for (const auto& [id, active] : active_) ids.push_back(id);
  for (const uint64_t id : ids) End(id, FinishReason::kCancelled, ShuttingDown());
  if (const Status kept = KeepCache(); !kept.ok()) return FailAll(kept);
  const StatusOr<std::vector<uint64_t>> digests = executor_->Stop(plan_.step + 1, stop_reason_);
  if (!digests.ok()) return FailAll(digests.status());
  const std::lock_guard lock(mutex_);
  digests_ = *digests;
}

// Of an orderly end. What is on the disks already, or was there and found no use today, stays.
Status Engine::KeepCache() {
  const bool orderly = stop_reason_ == ErrorKind{0} || stop_reason_ == ErrorKind::kInterrupted;
  if (!orderly || !executor_->keeps_cache()) return OkStatus();
  scheduler_.NextSave(&plan_);
  const std::vector<ChainedBlock>& chains = plan_.kept.chains;
  if (std::ranges::equal(chains, executor_->restored())) return OkStatus();
  plan_.kept.save = FreshSeed();
  return executor_->Execute(plan_, &outcome_);
}

bool Engine::ProbeIsDue() const {
  const std::lock_guard lock(mutex_);
  return options_.probe_ms > 0 &&
         (last_step_ns_ == 0 || NowNs() - last_step_ns_ > options_.probe_ms * 1'000'000);
}

// Requests, cancellations and passed deadlines since the last turn.
void Engine::TakeNews() {
  std::deque<std::unique_ptr<Active>> submitted;
  std::deque<std::pair<uint64_t, Status>> cancelled;
  {
    const std::lock_guard lock(mutex_);
    submitted.swap(submitted_);
    cancelled.swap(cancelled_);
  }
  for (std::unique_ptr<Active>& active : submitted) {
    const uint64_t id = active->stream->id();
    ScheduledRequest request;
    request.id = id;
    request.tokens = std::move(active->request.prompt);
    request.max_tokens = active->request.stop.max_tokens;
    request.token_set = options_.token_set;
    request.params = active->request.sampling;
    request.client = active->request.client;
    request.weight = active->request.weight;
    request.priority = active->request.priority;
    request.grammar = active->request.grammar;
    scheduler_.Add(std::move(request));
    active_[id] = std::move(active);
  }
  for (const auto& [id, why] : cancelled) End(id, FinishReason::kCancelled, why);
  std::vector<uint64_t> late;
  for (const auto& [id, active] : active_) {
    if (active->request.deadline.Passed()) late.push_back(id);
  }
  for (const uint64_t id : late) {
    End(id, FinishReason::kCancelled,
        MakeError(ErrorKind::kRequest, absl::StatusCode::kDeadlineExceeded,
                  "the request's deadline passed"));
  }
}

Status Engine::RunPlan(const StepPlan& plan) {
  const int64_t begin_ns = NowNs();
  for (const NewSequence& started : plan.started) {
    const std::optional<uint64_t> id = scheduler_.RequestAt(started.slot);
    // A request that was preempted has started before.
    if (!id || active_[*id]->started_ns != 0) continue;
    active_[*id]->started_ns = begin_ns;
    active_[*id]->usage.cached_tokens = static_cast<int64_t>(started.shared.size()) * kBlockTokens;
  }
  LOCKSTEP_RETURN_IF_ERROR(executor_->Execute(plan, &outcome_));
  const int64_t now_ns = NowNs();
  const auto prompt_rows = plan.prompt_rows();
  prefill_budget_.Learn(plan.rows() - prompt_rows, prompt_rows, Seconds(begin_ns, now_ns));
  {
    const std::lock_guard lock(mutex_);
    ++load_.steps;
    load_.rows += static_cast<uint64_t>(plan.rows());
    last_step_ns_ = now_ns;
  }
  // First: the token of one that was not waited for ends it as if it were whole.
  for (const int32_t slot : outcome_.too_slow) {
    const std::optional<uint64_t> id = scheduler_.RequestAt(slot);
    if (!id) continue;
    End(*id, FinishReason::kError,
        RequestError("the answer's grammar is too slow for this server: simplify the schema"));
  }
  for (size_t i = 0; i < outcome_.slots.size(); ++i) {
    const int32_t slot = outcome_.slots[i];
    const std::optional<uint64_t> id = scheduler_.RequestAt(slot);
    if (!id) continue;
    scheduler_.Append(slot, outcome_.tokens[i].id);
    FinishReason reason = FinishReason::kNone;
    Publish(*active_[*id], outcome_.tokens[i], now_ns, &reason);
    if (reason != FinishReason::kNone) End(*id, reason, OkStatus());
  }
  return OkStatus();
}

void Engine::Publish(Active& active, const SampledToken& token, int64_t now_ns,
                     FinishReason* reason) {
  const StopParams& stop = active.request.stop;
  const bool first = active.usage.completion_tokens++ == 0;
  if (first) active.first_token_ns = now_ns;
  {
    const std::lock_guard lock(mutex_);
    ++counts_.generation_tokens;
    if (first) {
      counts_.prompt_tokens += static_cast<uint64_t>(active.usage.prompt_tokens);
      counts_.cached_tokens += static_cast<uint64_t>(active.usage.cached_tokens);
      counts_.time_to_first_token.Add(Seconds(active.submitted_ns, now_ns));
    } else {
      counts_.inter_token.Add(Seconds(active.last_token_ns, now_ns));
    }
  }
  active.last_token_ns = now_ns;
  std::string text;
  if (std::find(stop.token_ids.begin(), stop.token_ids.end(), token.id) != stop.token_ids.end()) {
    *reason = FinishReason::kStop;
  } else {
    if (active.decoder) text = active.matcher.Push(active.decoder->Push(token.id));
    if (active.matcher.matched()) {
      *reason = FinishReason::kStop;
    } else if (active.usage.completion_tokens >= stop.max_tokens) {
      *reason = FinishReason::kLength;
    }
  }
  active.stream->Add(text, token, active.request.sampling.logprobs >= 0);
  if (*reason == FinishReason::kNone) Wake(active.stream);
}

void Engine::End(uint64_t id, FinishReason reason, const Status& error) {
  const auto found = active_.find(id);
  if (found == active_.end()) return;
  const std::unique_ptr<Active> active = std::move(found->second);
  active_.erase(found);
  scheduler_.Remove(id);
  std::string text;
  if (active->decoder) {
    text = active->matcher.Push(active->decoder->Finish());
    text += active->matcher.Flush();
  }
  Summary summary{reason, active->matcher.match(), error, active->usage, {}};
  const int64_t now_ns = NowNs();
  const int64_t started_ns = active->started_ns;
  summary.timings.queue_s = Seconds(active->submitted_ns, started_ns > 0 ? started_ns : now_ns);
  summary.timings.prefill_s =
      Seconds(started_ns, active->first_token_ns > 0 ? active->first_token_ns : now_ns);
  summary.timings.decode_s = Seconds(active->first_token_ns, active->last_token_ns);
  {
    // Before anyone hears of the end, and may ask for the counts.
    const std::lock_guard lock(mutex_);
    ++counts_.finished[static_cast<size_t>(reason)];
    ends_.Add(now_ns);
    CountLoad();
    if (reason == FinishReason::kStop || reason == FinishReason::kLength) {
      counts_.whole.Add(Seconds(active->submitted_ns, now_ns));
      counts_.queue.Add(summary.timings.queue_s);
      counts_.prefill.Add(summary.timings.prefill_s);
      counts_.decode.Add(summary.timings.decode_s);
    }
  }
  if (active->request.ended) active->request.ended(summary);
  active->stream->Finish(text, std::move(summary));
  Wake(active->stream);
  const std::lock_guard lock(mutex_);
  if (--open_ == 0) emptied_.notify_all();
}

// The group is gone: everything ends with that error, and so does every later request.
void Engine::FailAll(const Status& error) {
  const Status reason = options_.diagnose ? options_.diagnose(error) : error;
  {
    const std::lock_guard lock(mutex_);
    failure_ = reason.ok() ? error : reason;
  }
  TakeNews();
  std::vector<uint64_t> ids;
  for (const auto& [id, active] : active_) ids.push_back(id);
  for (const uint64_t id : ids) End(id, FinishReason::kError, status());
  const std::lock_guard lock(mutex_);
  emptied_.notify_all();
}

void Engine::Wake(const std::shared_ptr<OutputStream>& stream) {
  const std::lock_guard lock(publish_mutex_);
  if (std::find(to_notify_.begin(), to_notify_.end(), stream) == to_notify_.end())
    to_notify_.push_back(stream);
  publish_news_.notify_one();
}

void Engine::Publisher() {
  std::unique_lock lock(publish_mutex_);
  while (true) {
    publish_news_.wait(lock, [this] { return publisher_done_ || !to_notify_.empty(); });
    if (to_notify_.empty()) return;
    NotifyReaders(&lock);
  }
}

void Engine::NotifyReaders(std::unique_lock<std::mutex>* lock) {
  std::vector<std::shared_ptr<OutputStream>> streams;
  streams.swap(to_notify_);
  lock->unlock();
  for (const std::shared_ptr<OutputStream>& stream : streams) stream->Notify();
  lock->lock();
}

}  // namespace lockstep
