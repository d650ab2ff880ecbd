#include "launcher/load/load_run.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/numbers.h"
#include "launcher/load/sse.h"
#include "launcher/node_answer.h"
#include "runtime/base/clock.h"

namespace lockstep {
namespace {

constexpr int64_t kTurnMs = 100;
constexpr int64_t kAskTimeoutMs = 30'000;
constexpr size_t kMostErrorBytes = 64 << 10;
constexpr size_t kMostModelsBytes = 1 << 20;
// More events than tokens are no answer to what was asked; some servers send a few without any.
constexpr size_t kSpareEvents = 64;
constexpr double kMostRetryAfterS = 1e9;

double SecondsBetween(int64_t begin_ns, int64_t end_ns) {
  return static_cast<double>(end_ns - begin_ns) * 1e-9;
}

// Keeps the beginning of a body.
struct Beginning {
  size_t most;
  std::string text = {};

  // False: it is longer.
  bool Add(std::string_view bytes) {
    text += bytes.substr(0, most - text.size());
    return text.size() < most;
  }
};

void AddFailure(std::vector<LoadFailure>* failures, const std::string& cause,
                const std::string& said) {
  const auto found = std::find_if(failures->begin(), failures->end(),
                                  [&](const LoadFailure& one) { return one.cause == cause; });
  if (found == failures->end()) {
    failures->push_back({cause, 1, said});
  } else {
    ++found->count;
  }
}

// The time between the tokens of an answer whose events came at `times_ns`. A server may put
// several tokens into an event: each gap gets its part of those that came after the first event.
void AddInterToken(const std::vector<int64_t>& times_ns, int64_t tokens, Percentiles* found) {
  const auto gaps = static_cast<int64_t>(times_ns.size()) - 1;
  const int64_t after = std::max(tokens - 1, gaps);
  for (int64_t gap = 0; gap < gaps; ++gap) {
    const int64_t share = (gap + 1) * after / gaps - gap * after / gaps;
    const auto at = static_cast<size_t>(gap);
    const double each = SecondsBetween(times_ns[at], times_ns[at + 1]) / static_cast<double>(share);
    for (int64_t i = 0; i < share; ++i) found->Add(each);
  }
}

// One request of the trace.
class Call final : public HttpTaker {
 public:
  Call(const TraceRequest& request, int64_t due_ns, const LoadRunOptions& options,
       LoadResult* result)
      : request_(request),
        due_ns_(due_ns),
        options_(options),
        result_(*result),
        reader_([this](std::string_view data) { TakeEvent(data); }) {}

  bool Take(int status, std::string_view bytes) override {
    if (status != 200) return error_body_.Add(bytes);
    now_ns_ = NowNs();
    if (wrong_.empty() && !reader_.Push(bytes)) wrong_ = "an event longer than 1 MiB";
    return wrong_.empty();
  }

  void End(const HttpEnd& end) override {
    if (end.status == 429 || end.status == 503) {
      TakeRefusal(end);
    } else if (end.status != 0 && end.status != 200) {
      TakeError(end.status);
    } else if (!wrong_.empty()) {
      Fail(wrong_, said_);
    } else if (done_ || (finished_ && end.broken.empty())) {
      Complete();
    } else if (end.broken.empty()) {
      Fail(begun_ ? "the stream stopped before its end" : "the answer is no event stream", "");
    } else {
      Fail(end.broken, Printable(end.detail, /*lines=*/false));
    }
  }

 private:
  void TakeEvent(std::string_view data) {
    if (!wrong_.empty()) return;
    const CompletionEvent event = ReadCompletionEvent(data);
    begun_ = true;
    if (event.strange) {
      wrong_ = "an event that is of no completion";
      said_ = ReadServerError(data).message;
    } else if (!event.error.empty()) {
      wrong_ = "an error within the stream";
      said_ = event.error;
    }
    // An answer that is told all at its end has its first token there.
    if (event.token || (event.finished && times_ns_.empty())) times_ns_.push_back(now_ns_);
    if (times_ns_.size() > static_cast<size_t>(request_.output_tokens) + kSpareEvents)
      wrong_ = "more events than tokens were asked for";
    done_ = done_ || event.done;
    finished_ = finished_ || event.finished;
    if (event.prompt_tokens >= 0) prompt_tokens_ = event.prompt_tokens;
    if (event.completion_tokens >= 0) output_tokens_ = event.completion_tokens;
    if (event.cached_tokens >= 0) cached_tokens_ = event.cached_tokens;
    if (event.queue_s >= 0) queue_s_ = event.queue_s;
  }

  void TakeRefusal(const HttpEnd& end) {
    ++result_.rejected;
    Refusals& refusals = result_.refusals[end.status];
    if (refusals.count++ == 0) refusals.first = ReadServerError(error_body_.text).message;
    if (!end.retry_after.has_value()) return;
    ++refusals.with_retry_after;
    double seconds = -1;
    const bool number = absl::SimpleAtod(*end.retry_after, &seconds);
    if (number && seconds >= 0 && seconds <= kMostRetryAfterS) refusals.retry_after_s.Add(seconds);
  }

  void TakeError(int status) {
    const ServerError error = ReadServerError(error_body_.text);
    if (!error.too_long) return Fail("HTTP " + std::to_string(status), error.message);
    if (result_.refused++ == 0) result_.refusal = error.message;
  }

  void Fail(const std::string& cause, const std::string& said) {
    ++result_.failed;
    AddFailure(&result_.failures, cause, said);
  }

  void Complete() {
    if (times_ns_.empty()) return Fail("an answer without a token", "");
    // What a server says is believed where it can be.
    if (output_tokens_ > request_.output_tokens) return Fail("more tokens than were asked for", "");
    const auto events = static_cast<int64_t>(times_ns_.size());
    const int64_t tokens = output_tokens_ >= 0 ? output_tokens_ : events;
    const int64_t prompt_tokens = prompt_tokens_ >= 0 ? prompt_tokens_ : request_.prompt_tokens;
    const int64_t gaps = std::max(tokens, events) - 1;
    ++result_.completed;
    result_.too_short += tokens < request_.output_tokens ? 1 : 0;
    result_.prompt_tokens += static_cast<uint64_t>(prompt_tokens);
    result_.cached_tokens += static_cast<uint64_t>(std::min(cached_tokens_, prompt_tokens));
    result_.output_tokens += static_cast<uint64_t>(tokens);
    result_.events += static_cast<uint64_t>(events);
    const double first_s = SecondsBetween(due_ns_, times_ns_.front());
    const double after_s = SecondsBetween(times_ns_.front(), times_ns_.back());
    const double between_s = gaps > 0 ? after_s / static_cast<double>(gaps) : 0;
    result_.first_token.Add(first_s);
    AddInterToken(times_ns_, tokens, &result_.inter_token);
    result_.end_to_end.Add(first_s + after_s);
    if (queue_s_ >= 0) result_.queue.Add(queue_s_);
    const auto within = [](double slo_s, double s) { return slo_s <= 0 || s <= slo_s; };
    if (tokens >= request_.output_tokens && within(options_.slo_first_token_s, first_s) &&
        within(options_.slo_inter_token_s, between_s)) {
      ++result_.good;
    }
  }

  const TraceRequest& request_;
  const int64_t due_ns_;
  const LoadRunOptions& options_;
  LoadResult& result_;
  SseReader reader_;
  Beginning error_body_{kMostErrorBytes};
  int64_t now_ns_ = 0;             // when the bytes came that are being read
  std::vector<int64_t> times_ns_;  // of events with tokens
  bool begun_ = false, finished_ = false, done_ = false;
  std::string wrong_, said_;
  int64_t prompt_tokens_ = -1, output_tokens_ = -1, cached_tokens_ = 0;
  double queue_s_ = -1;
};

class Run {
 public:
  Run(const std::vector<TraceRequest>& trace, const LoadRunOptions& options)
      : trace_(trace), options_(options), streams_(options.server) {}

  LoadResult Go() {
    Prepare();
    begin_ns_ = NowNs();
    while (next_ < trace_.size() || streams_.open() > 0) {
      if (Stopped()) {
        result_.stopped = true;
        result_.unfinished = streams_.open();
        break;
      }
      SendDue();
      // Less than a millisecond is not slept but turned through, so as not to be late.
      const int64_t left_ns = next_ < trace_.size() ? DueNs() - NowNs() : kTurnMs * 1'000'000;
      streams_.Turn(std::clamp<int64_t>(left_ns / 1'000'000, 0, kTurnMs));
    }
    result_.seconds = SecondsBetween(begin_ns_, NowNs());
    return std::move(result_);
  }

 private:
  bool Stopped() const { return options_.stop && options_.stop(); }
  int64_t DueNs() const { return begin_ns_ + static_cast<int64_t>(trace_[next_].at_s * 1e9); }

  // The body of the next request, before its time.
  void Prepare() {
    if (next_ == trace_.size()) return;
    body_ = CompletionBody(trace_[next_], next_, options_.seed, options_.model.vocab_size,
                           options_.model.model);
  }

  void SendDue() {
    while (next_ < trace_.size() && DueNs() <= NowNs() && !Stopped()) {
      const int64_t due_ns = DueNs();
      ++result_.requests;
      if (streams_.full()) streams_.Turn(0);  // some may have ended
      if (streams_.full()) {
        ++result_.failed;
        AddFailure(&result_.failures, "this client may open no more connections (ulimit -n)", "");
      } else {
        result_.lag.Add(SecondsBetween(due_ns, NowNs()));
        streams_.Start("/v1/completions", std::move(body_), options_.request_timeout_ms,
                       std::make_unique<Call>(trace_[next_], due_ns, options_, &result_));
        streams_.Turn(0);
      }
      ++next_;
      Prepare();
    }
  }

  const std::vector<TraceRequest>& trace_;
  const LoadRunOptions& options_;
  LoadResult result_;
  HttpStreams streams_;
  int64_t begin_ns_ = 0;
  size_t next_ = 0;
  std::string body_;
};

// A whole answer.
class Ask final : public HttpTaker {
 public:
  struct Answer {
    bool ended = false;
    HttpEnd end;
    Beginning body{kMostModelsBytes};
  };
  explicit Ask(Answer* answer) : answer_(*answer) {}

  bool Take(int, std::string_view bytes) override { return answer_.body.Add(bytes); }
  void End(const HttpEnd& end) override {
    answer_.end = end;
    answer_.ended = true;
  }

 private:
  Answer& answer_;
};

Status Unreachable(const std::string& url, const HttpEnd& end) {
  const bool tls = end.broken == "no TLS connection";
  return UsageError("--url %s: %s (%s); %s", url, end.broken,
                    Printable(end.detail, /*lines=*/false),
                    tls ? "give --tls-ca with the PEM file of who signed its certificate"
                        : "see that the server runs and that this machine reaches it");
}

Status WrongAnswer(const std::string& url, int status, const std::string& body) {
  const std::string message = ReadServerError(body).message;
  if (status == 401 || status == 403) {
    return UsageError("--url %s: %d: %s; give --api-key-file with a key of this server", url,
                      status, message);
  }
  if (status == 429 || status == 503) {
    return UsageError("--url %s: %d: %s; come again when it is ready", url, status, message);
  }
  return UsageError(
      "--url %s: GET /v1/models was answered with %d: '%s'; give the address of a server with "
      "OpenAI's API, as `lockstep serve` prints it",
      url, status, message);
}

}  // namespace

StatusOr<ServedFacts> AskServer(const HttpStreamOptions& server, const std::string& model,
                                const std::function<bool()>& stop) {
  const std::string& url = server.server.directory;
  Ask::Answer answer;
  HttpStreams streams(server);
  streams.Start("/v1/models", "", kAskTimeoutMs, std::make_unique<Ask>(&answer));
  while (!answer.ended) {
    if (stop && stop()) return InterruptedError();
    streams.Turn(kTurnMs);
  }
  if (answer.end.status == 0) return Unreachable(url, answer.end);
  const bool endless = answer.body.text.size() == kMostModelsBytes;
  if (answer.end.status != 200 || endless)
    return WrongAnswer(url, answer.end.status, answer.body.text);
  if (!answer.end.broken.empty()) return Unreachable(url, answer.end);
  StatusOr<ServedFacts> facts = ReadModels(answer.body.text, model);
  if (!facts.ok()) return UsageError("--url %s: the server %s", url, MessageOf(facts.status()));
  return facts;
}

LoadResult RunLoad(const std::vector<TraceRequest>& trace, const LoadRunOptions& options) {
  return Run(trace, options).Go();
}

}  // namespace lockstep
