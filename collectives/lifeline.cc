#include "collectives/lifeline.h"

#include <chrono>

namespace lockstep {

Status Lifeline::reason() const {
  std::lock_guard lock(mutex_);
  return reason_;
}

bool Lifeline::Break(const Status& reason) {
  std::lock_guard lock(mutex_);
  if (broken_.load(std::memory_order_relaxed)) return false;
  reason_ = reason.ok() ? InternalError("stopped without a reason") : reason;
  broken_.store(true, std::memory_order_release);
  changed_.notify_all();
  return true;
}

void Lifeline::Abort(const Status& reason) {
  if (!Break(reason)) return;
  std::lock_guard lock(announcer_mutex_);
  if (announcer_) announcer_(reason);
}

Status Lifeline::Overrule(const Status& data_error, int64_t grace_ms) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, std::chrono::milliseconds(grace_ms),
                    [this] { return broken_.load(std::memory_order_relaxed); });
  return broken_.load(std::memory_order_relaxed) ? reason_ : data_error;
}

void Lifeline::SetAnnouncer(std::function<void(const Status&)> announcer) {
  std::lock_guard lock(announcer_mutex_);
  announcer_ = std::move(announcer);
}

}  // namespace lockstep
