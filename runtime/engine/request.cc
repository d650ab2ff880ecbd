#include "runtime/engine/request.h"

#include <chrono>
#include <string>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"

namespace lockstep {
namespace {

constexpr char kRetryAfterUrl[] = "lockstep/retry-after";

}  // namespace

Status WithRetryAfter(Status status, int64_t seconds) {
  status.SetPayload(kRetryAfterUrl, absl::Cord(std::to_string(seconds)));
  return status;
}

int64_t RetryAfter(const Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterUrl);
  int64_t seconds = 0;
  return payload.has_value() && absl::SimpleAtoi(std::string(*payload), &seconds) ? seconds : 0;
}

OutputDelta OutputStream::Take() {
  const std::lock_guard lock(mutex_);
  OutputDelta delta = std::exchange(pending_, {});
  return delta;
}

bool OutputStream::WaitFor(int64_t timeout_ms) {
  std::unique_lock lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                           [this] { return pending_.finished || !pending_.ids.empty(); });
}

void OutputStream::SetNotify(std::function<void()> notify) {
  bool something;
  {
    const std::lock_guard lock(mutex_);
    something = pending_.finished || !pending_.ids.empty();
  }
  {
    const std::lock_guard lock(notify_mutex_);
    notify_ = std::move(notify);
  }
  if (something) Notify();
}

void OutputStream::Add(const std::string& text, const SampledToken& token, bool with_logprobs) {
  {
    const std::lock_guard lock(mutex_);
    pending_.text += text;
    pending_.ids.push_back(token.id);
    if (with_logprobs) pending_.logprobs.push_back(token);
  }
  changed_.notify_all();
}

void OutputStream::Finish(const std::string& text, Summary summary) {
  {
    const std::lock_guard lock(mutex_);
    pending_.text += text;
    pending_.finished = true;
    summary_ = std::move(summary);
  }
  changed_.notify_all();
}

void OutputStream::Notify() {
  const std::lock_guard lock(notify_mutex_);
  if (notify_) notify_();
}

}  // namespace lockstep
