// Why this rank must stop: set once, by the control channel (a lost peer, an abort) or by this rank
// itself, and looked at by every wait. Shared by a membership and its groups. All calls are safe
// from any thread.
#pragma once

#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>

#include "runtime/base/status.h"

namespace lockstep {

class Lifeline {
 public:
  // False while all is well; one atomic load.
  bool broken() const { return broken_.load(std::memory_order_acquire); }
  // Ok while all is well.
  Status reason() const;
  // Sets the reason; the first one wins. True if this call was the first.
  bool Break(const Status& reason);
  // Break(), and tells the other ranks through the announcer.
  void Abort(const Status& reason);
  // What to report for an error of a data connection: a peer that closes may itself be the victim
  // of another, so the control channel gets `grace_ms` to say who was first.
  Status Overrule(const Status& data_error, int64_t grace_ms = 300);
  // How Abort() tells the other ranks; an empty function detaches. After it returns the previous
  // announcer is not running any more.
  void SetAnnouncer(std::function<void(const Status&)> announcer);

 private:
  std::atomic<bool> broken_{false};
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Status reason_;
  std::mutex announcer_mutex_;
  std::function<void(const Status&)> announcer_;
};

}  // namespace lockstep
