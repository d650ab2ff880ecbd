#include "runtime/serve/quotas.h"

#include <algorithm>
#include <cmath>

#include "runtime/engine/request.h"

namespace lockstep {
namespace {

// What a call takes at most: with a full bucket every call can begin.
double Taken(const Client& client, int64_t tokens) {
  return static_cast<double>(std::min(tokens, client.limits.tokens_per_minute));
}

double PerSecond(int64_t tokens_per_minute) { return static_cast<double>(tokens_per_minute) / 60; }

Status Exhausted(const std::string& message) {
  return MakeError(ErrorKind::kRequest, absl::StatusCode::kResourceExhausted, message);
}

}  // namespace

Quotas::Account& Quotas::Filled(const std::string& name, int64_t now_ns) {
  Account& account = accounts_[name];
  const double seconds = static_cast<double>(now_ns - account.filled_ns) * 1e-9;
  account.filled_ns = now_ns;
  if (account.tokens_per_minute == 0) return account;
  account.tokens =
      std::min(static_cast<double>(account.tokens_per_minute),
               account.tokens + std::max(seconds, 0.0) * PerSecond(account.tokens_per_minute));
  return account;
}

Status Quotas::Take(const Client& client, int64_t tokens, int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  const ClientLimits& limits = client.limits;
  Account& account = Filled(client.name, now_ns);
  const auto most = static_cast<double>(limits.tokens_per_minute);
  // A limit that is new begins with a full bucket.
  account.tokens = account.tokens_per_minute == 0 ? most : std::min(account.tokens, most);
  account.tokens_per_minute = limits.tokens_per_minute;
  if (limits.requests > 0 && account.running >= limits.requests) {
    return WithRetryAfter(
        Exhausted(absl::StrFormat("'%s' may have %d requests at once, and has; wait for one to end",
                                  client.name, limits.requests)),
        1);
  }
  const double taken = Taken(client, tokens);
  if (limits.tokens_per_minute > 0 && account.tokens < taken) {
    const auto seconds = static_cast<int64_t>(
        std::max(std::ceil((taken - account.tokens) / PerSecond(limits.tokens_per_minute)), 1.0));
    return WithRetryAfter(
        Exhausted(absl::StrFormat("'%s' may use %d tokens a minute, of which %d are left; this "
                                  "request may need %d (prompt "
                                  "and max_tokens). Try again in %d s, or ask for fewer max_tokens",
                                  client.name, limits.tokens_per_minute,
                                  std::max<int64_t>(static_cast<int64_t>(account.tokens), 0),
                                  tokens, seconds)),
        seconds);
  }
  account.tokens -= taken;
  ++account.running;
  return OkStatus();
}

void Quotas::GiveBack(const Client& client, int64_t tokens, int64_t used, int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  Account& account = Filled(client.name, now_ns);
  --account.running;
  if (client.limits.tokens_per_minute == 0 || account.tokens_per_minute == 0) return;
  account.tokens = std::min(static_cast<double>(account.tokens_per_minute),
                            account.tokens + Taken(client, tokens) - static_cast<double>(used));
}

QuotaState Quotas::Of(const Client& client, int64_t now_ns) {
  const std::lock_guard lock(mutex_);
  const Account& account = Filled(client.name, now_ns);
  QuotaState state;
  state.requests = std::max<int64_t>(client.limits.requests - account.running, 0);
  const int64_t limit = client.limits.tokens_per_minute;
  if (limit == 0) return state;
  const auto most = static_cast<double>(limit);
  const double tokens = account.tokens_per_minute == 0 ? most : std::min(account.tokens, most);
  state.tokens = std::max<int64_t>(static_cast<int64_t>(tokens), 0);
  state.tokens_reset_s = (most - tokens) / PerSecond(limit);
  return state;
}

}  // namespace lockstep
