// What clients have of the limits that their keys give them.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "runtime/base/status.h"
#include "runtime/serve/api_keys.h"

namespace lockstep {

// What is left to a client, as it is told.
struct QuotaState {
  int64_t requests = 0;
  int64_t tokens = 0;
  double tokens_reset_s = 0;  // until all are there again
};

// A call takes all tokens that it may come to need from a bucket that a minute fills, and gives
// back at its end what it did not use; one that may need more than a full bucket takes a full one.
// Times are NowNs(). Any thread.
class Quotas {
 public:
  // Takes a call of `tokens`. RESOURCE_EXHAUSTED if a limit is reached: then nothing is taken, and
  // RetryAfter says when it would be, if nothing is given back before.
  Status Take(const Client& client, int64_t tokens, int64_t now_ns);
  // Ends a call of `tokens` that used so many.
  void GiveBack(const Client& client, int64_t tokens, int64_t used, int64_t now_ns);
  QuotaState Of(const Client& client, int64_t now_ns);

 private:
  // The limit is that of the latest call taken: calls that began before a change end by it, too.
  struct Account {
    int64_t running = 0;
    int64_t tokens_per_minute = 0;
    double tokens = 0;  // in the bucket; means nothing without a limit
    int64_t filled_ns = 0;
  };
  // The client's account with its bucket, if there is one, filled up to now.
  Account& Filled(const std::string& name, int64_t now_ns);

  std::mutex mutex_;
  std::map<std::string, Account> accounts_;  // by name: no more than there are in the key files
};

}  // namespace lockstep
