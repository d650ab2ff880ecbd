// Calls of clients, by HTTP or gRPC: who makes them, what they may take of the client's limits, and
// the line that each leaves in the log. Both ends go through here, so the same holds for both.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/log_event.h"
#include "runtime/base/status.h"
#include "runtime/engine/request.h"
#include "runtime/http/server.h"
#include "runtime/serve/api_keys.h"
#include "runtime/serve/quotas.h"

namespace lockstep {

// Who may use the engine. Any thread.
class Access {
 public:
  // Null: nobody is asked for a key, and there are no limits. `keys` must outlive this.
  explicit Access(const ApiKeys* keys) : keys_(keys) {}
  // One that asks nobody, and lasts.
  static Access& Open();

  bool asks_for_keys() const { return keys_ != nullptr; }
  // Whose key it is, nothing for none that is known; without keys a client without a name.
  std::optional<Client> Find(std::string_view key) const;
  Quotas& quotas() { return quotas_; }

 private:
  const ApiKeys* const keys_;
  Quotas quotas_;
};

// The trace that a call belongs to, as W3C's traceparent has it: 00-TRACE-SPAN-FLAGS.
struct TraceParent {
  std::string trace;  // 32 hexadecimal digits
  std::string flags;  // 2
};
// Nothing for what is no traceparent.
std::optional<TraceParent> ParseTraceParent(std::string_view text);
// Whether a client's name for its request is short and plain enough to be repeated.
bool IsRequestId(std::string_view text);

// What is known when a call comes in.
struct Arrival {
  std::string route;  // as this server knows it: what a stranger wrote stays out of the log
  std::string model;
  std::string_view
      request_id;  // as the client gave it; a fresh one in place of none or a wrong one
  std::string_view traceparent;  // the same; none in place of a wrong one
  bool small = false;            // if it goes well, of no interest but to --log-level debug
};

// One call, owned by its answer and by its requests in the engine; its end writes the line.
// Thread-safe.
class Call : public std::enable_shared_from_this<Call> {
 public:
  // `access` must outlive the call. `client`: nothing for who was not let in.
  Call(Access& access, const Arrival& arrival, std::optional<Client> client);
  ~Call();
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  // Takes what `requests` may need of the client's limits, and fills in whose they are. An error if
  // a limit is reached: RetryAfter says when it would not be. Once.
  Status Admit(std::span<Request> requests, int64_t max_model_len);

  // A number (HTTP) or a name (gRPC).
  void SetStatus(const log::Fact& status);
  // What the client is told beside its answer: the request's id, its trace, what is left of its
  // limits.
  std::vector<HttpField> Fields() const;
  const std::string& id() const { return id_; }
  // Whether the client was let in.
  bool known() const { return client_.has_value(); }

 private:
  void Ended(const Summary& summary);
  void GiveBackLocked();

  Access& access_;
  const std::optional<Client> client_;
  const std::string route_, model_, id_;
  const std::optional<TraceParent> trace_;
  const std::string span_;
  const bool small_;
  const int64_t begin_ns_;

  std::mutex mutex_;
  std::optional<log::Fact> outcome_;
  int64_t taken_tokens_ = -1;  // of the client's; -1: nothing
  int64_t used_tokens_ = 0;    // of these, by requests that have ended
  size_t left_ = 0;            // requests that have not ended
  FinishReason reason_ = FinishReason::kNone;
  Usage usage_;  // of all requests
  double queue_s_ = 0, first_token_s_ = 0;
};

}  // namespace lockstep
