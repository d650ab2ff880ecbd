#include "runtime/serve/call.h"

#include <algorithm>
#include <utility>

#include "runtime/base/clock.h"
#include "runtime/engine/defaults.h"

namespace lockstep {
namespace {

constexpr size_t kMostIdBytes = 128;

bool IsHex(std::string_view text) {
  return text.find_first_not_of("0123456789abcdef") == std::string_view::npos;
}
bool IsZero(std::string_view text) { return text.find_first_not_of('0') == std::string_view::npos; }

std::string FreshId() { return absl::StrFormat("%016x%016x", FreshSeed(), FreshSeed()); }

double Ms(double seconds) { return seconds * 1e3; }

}  // namespace

Access& Access::Open() {
  static Access open(nullptr);
  return open;
}

std::optional<Client> Access::Find(std::string_view key) const {
  return keys_ == nullptr ? std::optional<Client>(Client()) : keys_->Find(key);
}

std::optional<TraceParent> ParseTraceParent(std::string_view text) {
  constexpr size_t kBytes = 55;
  if (text.size() < kBytes || text[2] != '-' || text[35] != '-' || text[52] != '-')
    return std::nullopt;
  const std::string_view version = text.substr(0, 2);
  const std::string_view trace = text.substr(3, 32), span = text.substr(36, 16);
  const std::string_view flags = text.substr(53, 2);
  if (!IsHex(version) || !IsHex(trace) || !IsHex(span) || !IsHex(flags)) return std::nullopt;
  // Later versions may have more behind.
  const bool whole = text.size() == kBytes || (version != "00" && text[kBytes] == '-');
  if (!whole || version == "ff" || IsZero(trace) || IsZero(span)) return std::nullopt;
  return TraceParent{std::string(trace), std::string(flags)};
}

bool IsRequestId(std::string_view text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:-";
  return !text.empty() && text.size() <= kMostIdBytes &&
         text.find_first_not_of(kPlain) == std::string_view::npos;
}

Call::Call(Access& access, const Arrival& arrival, std::optional<Client> client)
    : access_(access),
      client_(std::move(client)),
      route_(arrival.route),
      model_(arrival.model),
      id_(IsRequestId(arrival.request_id) ? std::string(arrival.request_id) : FreshId()),
      trace_(ParseTraceParent(arrival.traceparent)),
      span_(absl::StrFormat("%016x", std::max<uint64_t>(FreshSeed(), 1))),
      small_(arrival.small),
      begin_ns_(NowNs()) {}

Call::~Call() {
  const std::lock_guard lock(mutex_);
  GiveBackLocked();
  // As nginx says it: the client was gone before there was a status.
  const log::Fact outcome = outcome_.value_or(log::Fact("status", int64_t{499}));
  const bool dull = small_ && outcome.value() < "400";
  const log::Level level = dull ? log::Level::kDebug : log::Level::kInfo;
  if (!log::Enabled(level)) return;
  std::vector<log::Fact> facts = {{"id", id_}, {"route", route_}, {"model", model_}};
  if (client_.has_value() && !client_->name.empty()) facts.emplace_back("key", client_->name);
  facts.push_back(outcome);
  if (reason_ != FinishReason::kNone) {
    facts.emplace_back("finish", FinishReasonName(reason_));
    facts.emplace_back("prompt_tokens", usage_.prompt_tokens);
    facts.emplace_back("cached_tokens", usage_.cached_tokens);
    facts.emplace_back("completion_tokens", usage_.completion_tokens);
    facts.emplace_back("queue_ms", Ms(queue_s_));
    facts.emplace_back("ttft_ms", Ms(first_token_s_));
  }
  facts.emplace_back("total_ms", Ms(static_cast<double>(NowNs() - begin_ns_) * 1e-9));
  if (trace_.has_value()) facts.emplace_back("trace", trace_->trace);
  log::Event(level, "request", facts);
}

Status Call::Admit(std::span<Request> requests, int64_t max_model_len) {
  int64_t tokens = 0;
  for (const Request& request : requests) {
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    const int64_t room = std::max<int64_t>(max_model_len - prompt, 1);
    const int64_t most = request.stop.max_tokens;
    tokens += prompt + (most > 0 ? std::min(most, room) : room);
  }
  const Client client = client_.value_or(Client());
  if (!client.name.empty()) {
    LOCKSTEP_RETURN_IF_ERROR(access_.quotas().Take(client, tokens, NowNs()));
    const std::lock_guard lock(mutex_);
    taken_tokens_ = tokens;
  }
  left_ = requests.size();
  for (Request& request : requests) {
    request.id = id_;
    request.client = client.name;
    request.weight = client.limits.weight;
    if (!client.name.empty()) request.priority = std::max(request.priority, client.limits.priority);
    request.ended = [self = shared_from_this()](const Summary& summary) { self->Ended(summary); };
  }
  return OkStatus();
}

// Before the client hears it, so that its next call finds the room that this one leaves.
void Call::Ended(const Summary& summary) {
  const std::lock_guard lock(mutex_);
  usage_.prompt_tokens += summary.usage.prompt_tokens;
  usage_.cached_tokens += summary.usage.cached_tokens;
  usage_.completion_tokens += summary.usage.completion_tokens;
  // Who hangs up before the first token has had its prompt computed. A prompt that was found in the
  // cache counts all the same, as at OpenAI.
  if (summary.timings.prefill_s > 0)
    used_tokens_ += summary.usage.prompt_tokens + summary.usage.completion_tokens;
  queue_s_ = std::max(queue_s_, summary.timings.queue_s);
  first_token_s_ = std::max(first_token_s_, summary.timings.queue_s + summary.timings.prefill_s);
  // Of several the worst counts.
  reason_ = std::max(reason_, summary.reason);
  if (--left_ == 0) GiveBackLocked();
}

void Call::GiveBackLocked() {
  const int64_t taken = std::exchange(taken_tokens_, -1);
  if (taken < 0) return;
  access_.quotas().GiveBack(*client_, taken, used_tokens_, NowNs());
}

void Call::SetStatus(const log::Fact& status) {
  const std::lock_guard lock(mutex_);
  outcome_ = status;
}

std::vector<HttpField> Call::Fields() const {
  std::vector<HttpField> fields = {{"x-request-id", id_}};
  if (trace_.has_value()) {
    fields.push_back(
        {"traceparent", absl::StrFormat("00-%s-%s-%s", trace_->trace, span_, trace_->flags)});
  }
  if (!client_.has_value()) return fields;
  const ClientLimits& limits = client_->limits;
  if (limits.requests == 0 && limits.tokens_per_minute == 0) return fields;
  const QuotaState state = access_.quotas().Of(*client_, NowNs());
  if (limits.requests > 0) {
    fields.push_back({"x-ratelimit-limit-requests", std::to_string(limits.requests)});
    fields.push_back({"x-ratelimit-remaining-requests", std::to_string(state.requests)});
  }
  if (limits.tokens_per_minute > 0) {
    fields.push_back({"x-ratelimit-limit-tokens", std::to_string(limits.tokens_per_minute)});
    fields.push_back({"x-ratelimit-remaining-tokens", std::to_string(state.tokens)});
    fields.push_back({"x-ratelimit-reset-tokens", absl::StrFormat("%.3fs", state.tokens_reset_s)});
  }
  return fields;
}

}  // namespace lockstep
