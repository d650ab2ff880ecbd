// The engine of rank 0: takes requests from any thread and runs the loop schedule -> compute ->
// sample -> publish on a thread of its own, or in turns that its owner asks for.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "runtime/decode/stop.h"
#include "runtime/engine/counts.h"
#include "runtime/engine/executor.h"
#include "runtime/engine/finish_rate.h"
#include "runtime/engine/prefill_budget.h"
#include "runtime/engine/request.h"
#include "runtime/engine/scheduler.h"

namespace lockstep {

// Turns the tokens of one answer into text, piece by piece; Finish returns what was held back.
class TokenDecoder {
 public:
  virtual ~TokenDecoder() = default;
  virtual std::string Push(int32_t id) = 0;
  virtual std::string Finish() = 0;
};

struct EngineOptions {
  SchedulerLimits limits;
  int64_t vocab_size = 0;
  TokenSet token_set;                       // which ids may be sampled
  TokenConstraints* constraints = nullptr;  // what keeps grammars; null: none can be kept
  int64_t max_queue = 256;  // requests that may wait; more are refused (RESOURCE_EXHAUSTED)
  // Makes the decoder of one answer; empty: answers have ids only.
  std::function<std::unique_ptr<TokenDecoder>()> make_decoder;
  // Asked before a step and while idle, at most every 100 ms: OK while every rank is there. Empty:
  // always OK.
  std::function<Status()> health;
  // Turns an error of the executor into the one to report (the named lost rank rather than the
  // broken exchange).
  std::function<Status(const Status&)> diagnose;
  // An idle engine has its ranks make a step without rows when the last one is so long ago, so that
  // a group that cannot compute is found before a request finds it; 0: never.
  int64_t probe_ms = 0;
  // How much longer a step in which sequences decode may take because of prompts; 0: any time.
  double prefill_delay_s = 0;
  // For simulations: no threads. Whoever made the engine calls Step, one call of any kind at a
  // time, and readers are notified from there. Deadlines of requests are of the real clock all the
  // same.
  bool stepped = false;
  const Clock* clock = nullptr;  // null: the real one; outlives the engine
};

struct EngineLoad {
  int64_t waiting = 0;
  int64_t running = 0;
  int64_t kv_blocks_used = 0;
  int64_t kv_blocks = 0;
  uint64_t steps = 0;
  uint64_t rows = 0;  // of all steps: tokens of prompts and answers that were computed
};

class Engine {
 public:
  // `executor` must outlive the engine and is used by its thread alone.
  Engine(EngineOptions options, Executor* executor);
  // Stop(ErrorKind{0}) if it was not called.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // OK, or why Submit would take no request now, whatever is in it: asked before the work of making
  // one. Any thread.
  Status Accepts() const;
  // Takes a request. Errors: RequestError for bad parameters or a prompt that can never fit;
  // RESOURCE_EXHAUSTED when the queue is full, with RetryAfter as long as it may take to empty;
  // UNAVAILABLE when the engine is draining or has failed. Any thread.
  StatusOr<std::shared_ptr<OutputStream>> Submit(Request request);
  // The request ends as cancelled (or has ended already): it has no rows in the next plan that is
  // not yet sent. Any thread. `why` is reported as the summary's error.
  void Cancel(uint64_t id, Status why = absl::CancelledError("cancelled"));

  // Takes no more requests and waits until all have ended or `timeout_ms` passed; what still runs
  // then goes on until Stop cancels it. Any thread.
  void Drain(int64_t timeout_ms);
  // If `stepped`: one turn of the loop, with all that is published. False if there was nothing to
  // compute, or the engine has failed.
  bool Step();
  // Cancels what runs, has the ranks keep their cache if they do so (Executor::keeps_cache) and the
  // reason is none or an interruption, sends the stop plan to all ranks and ends the loop. Returns
  // each rank's digest over all steps; after a failure, that failure. Once.
  StatusOr<std::vector<uint64_t>> Stop(ErrorKind reason);

  // After a failure: what it is called from now on, to those who ask and who are refused. Nothing
  // while the engine works. Any thread.
  void ExplainFailure(const Status& why);

  // Works again after a failure, over another executor with its own limits; every request of before
  // has ended with that failure. The thread that calls Stop.
  void Resume(const SchedulerLimits& limits, Executor* executor);

  // OK while the engine works; after a failure its reason. Any thread.
  Status status() const;
  EngineLoad load() const;
  EngineCounts counts() const;
  // Whether a request would be taken and served: not while draining, not after a failure, and only
  // if all ranks have ended a step within the last kReadyMs. Any thread.
  static constexpr int64_t kReadyMs = 60'000;
  Status Readiness() const;

 private:
  struct Active {
    std::shared_ptr<OutputStream> stream;
    Request request;
    std::unique_ptr<TokenDecoder> decoder;
    StopMatcher matcher;
    Usage usage;
    int64_t submitted_ns = 0;
    int64_t started_ns = 0;
    int64_t first_token_ns = 0;
    int64_t last_token_ns = 0;
  };
  void Loop();
  void Publisher();
  void NotifyReaders(std::unique_lock<std::mutex>* lock);
  // One turn of the loop; false to end it.
  bool Turn();
  void CountLoad();
  int64_t NowNs() const { return clock_.NowNs(); }
  void StopRanks();
  Status KeepCache();
  void TakeNews();
  bool ProbeIsDue() const;
  Status RunPlan(const StepPlan& plan);
  void Publish(Active& active, const SampledToken& token, int64_t now_ns, FinishReason* reason);
  void End(uint64_t id, FinishReason reason, const Status& error);
  void FailAll(const Status& error);
  void Wake(const std::shared_ptr<OutputStream>& stream);
  // What is wrong with a request for any limits; whether it can run under those of now, with
  // max_tokens cut to the room that there is.
  Status Validate(const Request& request) const;
  Status FitLocked(Request* request) const;
  Status AcceptsLocked() const;

  EngineOptions options_;  // Resume changes the limits, under mutex_
  Executor* executor_;     // the loop's own
  const Clock& clock_;

  // Shared with callers.
  mutable std::mutex mutex_;
  std::condition_variable news_;     // for the loop
  std::condition_variable emptied_;  // for Drain
  std::deque<std::unique_ptr<Active>> submitted_;
  std::deque<std::pair<uint64_t, Status>> cancelled_;
  int64_t open_ = 0;  // requests that have not ended
  bool draining_ = false;
  bool stopping_ = false;
  ErrorKind stop_reason_{0};
  Status failure_;
  EngineLoad load_;
  EngineCounts counts_;
  FinishRate ends_;
  int64_t last_step_ns_ = 0;  // when the last step ended; 0: none has
  std::vector<uint64_t> digests_;
  uint64_t next_id_ = 1;
  uint64_t preempted_before_ = 0;  // before the last Resume

  // The loop's own.
  Scheduler scheduler_;
  PrefillBudget prefill_budget_;
  std::unordered_map<uint64_t, std::unique_ptr<Active>> active_;
  StepPlan plan_;
  StepOutcome outcome_;
  int64_t next_health_ns_ = 0;
  bool ended_ = false;  // if stepped: the last turn was made

  // Notifications leave through a thread of their own, so that no reader is on the loop's path.
  std::mutex publish_mutex_;
  std::condition_variable publish_news_;
  std::vector<std::shared_ptr<OutputStream>> to_notify_;
  bool publisher_done_ = false;

  std::thread publisher_;
  std::thread loop_;
};

}  // namespace lockstep
