// One request to the engine and what comes back.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "runtime/base/clock.h"
#include "runtime/base/status.h"
#include "runtime/decode/candidates.h"
#include "runtime/decode/sampler.h"
#include "runtime/decode/sampling_params.h"
#include "runtime/decode/stop.h"

namespace lockstep {

// Of a client's share; far enough for any wish, near enough for sums of them.
inline constexpr double kLeastWeight = 0.001;
inline constexpr double kMostWeight = 1000;

struct Summary;

// An error that goes away by itself: when asking again makes sense, in seconds (0: it is not said).
// For clients, as Retry-After.
Status WithRetryAfter(Status status, int64_t seconds);
int64_t RetryAfter(const Status& status);

struct Request {
  std::vector<int32_t> prompt;  // token ids, not empty
  SamplingParams sampling;
  StopParams stop;    // max_tokens 0: as much as the context holds; more than that is cut to it
  Deadline deadline;  // afterwards the request is cancelled
  // Whose request it is (the name of an API key), that client's share among those of the same
  // priority, and the priority: lower is better. docs/scheduler.md says what they do.
  std::string client;
  double weight = 1;
  int32_t priority = 0;
  std::string grammar;  // what the answer must follow (token_constraint.h); empty: nothing
  std::string id;       // of the call that it belongs to, for logs
  // Called once when the request has ended, before its stream tells that, from the engine's thread:
  // it must not block. Not called for requests that were not taken.
  std::function<void(const Summary& summary)> ended;
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t completion_tokens = 0;  // with the token that ended the answer
  int64_t cached_tokens = 0;      // of the prompt, that were there from an earlier request
};

// Seconds. A phase that did not happen is 0.
struct Timings {
  double queue_s = 0;    // from submission to the first step with this request
  double prefill_s = 0;  // from there to the first token
  double decode_s = 0;   // from the first token to the last
};

// Everything that came since the last Take.
struct OutputDelta {
  std::string text;                    // whole characters; may lag behind the ids
  std::vector<int32_t> ids;            // with the token that ended the answer
  std::vector<SampledToken> logprobs;  // one per id, if log-probabilities were asked for
  bool finished = false;               // nothing comes after this
};

// Valid once a delta was `finished`.
struct Summary {
  FinishReason reason = FinishReason::kNone;
  std::string stop_text;  // the stop string that ended the answer, if one did
  Status error;           // why, for kCancelled and kError
  Usage usage;
  Timings timings;
};

// The answer of one request as it grows. The engine writes, one reader takes; a slow reader makes
// the next delta longer, never the engine slower. Memory is bounded by the request's max_tokens.
// Thread-safe.
class OutputStream {
 public:
  explicit OutputStream(uint64_t id) : id_(id) {}
  uint64_t id() const { return id_; }

  // What came since the last time; never blocks.
  OutputDelta Take();
  // Waits until there is something to take; false after `timeout_ms`.
  bool WaitFor(int64_t timeout_ms);
  // Valid after a delta with `finished` was taken.
  const Summary& summary() const { return summary_; }

  // `notify` is called from a thread of the engine whenever there is something new to take, at
  // least once after each such change, never concurrently with itself; it must not block. Called at
  // once if there is something already.
  void SetNotify(std::function<void()> notify);

  // For the engine.
  void Add(const std::string& text, const SampledToken& token, bool with_logprobs);
  void Finish(const std::string& text, Summary summary);
  void Notify();

 private:
  const uint64_t id_;
  std::mutex mutex_;
  std::condition_variable changed_;
  OutputDelta pending_;
  Summary summary_;
  std::mutex notify_mutex_;  // held while notify_ runs
  std::function<void()> notify_;
};

}  // namespace lockstep
