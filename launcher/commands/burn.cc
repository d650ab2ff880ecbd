// `lockstep burn`: the real engine on all ranks under mixed requests for hours, and a verdict. What
// was answered is asked again and must come out the same; every rank watches its memory and its
// machine meanwhile, and tells rank 0 at the end.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <thread>
#include <utility>

#include "launcher/commands/bench.h"
#include "launcher/commands/burn_load.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/generation.h"
#include "launcher/commands/sensors.h"
#include "launcher/process.h"
#include "launcher/progress.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kSamples = 720;  // of a whole burn, at most one a second
// A rank may grow by so much beyond its plan and its first tenth: allocators keep what they have.
constexpr uint64_t kGrowthBytes = uint64_t{64} << 20;
constexpr uint64_t kGrowthPart = 20;  // or by this part of what it was
// The last quarter is slower than this part of the first: only told of long burns, as short ones
// are as fast as their neighbours let them be.
constexpr double kSlower = 0.8;
constexpr double kLongBurnS = 300;
constexpr size_t kMostFindings = 20;
// Ranks after rank 0 leave the end to it: it lets requests end, and makes the verdict.
constexpr int64_t kPatienceMs = 60'000;
constexpr int64_t kDrainMs = 30'000;

struct Burn {
  double seconds = 0;
  uint64_t requests = 0, cancelled = 0, failed = 0, repeated = 0, different = 0, tokens = 0;
  std::vector<double> tokens_per_s;  // of parts of the time, all as long
  std::vector<std::string> findings;

  void Find(std::string finding) { findings.push_back(std::move(finding)); }
  // Of requests there may be many; what is found out at the end must have a place.
  void FindOfRequest(std::string finding) {
    if (findings.size() < kMostFindings) Find(std::move(finding));
  }
};

class Driver {
 public:
  Driver(Engine& engine, BurnLoad load, const Options& options)
      : engine_(engine),
        load_(std::move(load)),
        seconds_(options.minutes * 60),
        at_once_(static_cast<size_t>(options.max_num_seqs) + 2) {}

  // Until the time is over, the engine fails, or a signal comes.
  void Run(Burn* burn) {
    const int64_t start_ns = NowNs();
    const auto parts = std::clamp<int64_t>(static_cast<int64_t>(seconds_), 1, kSamples);
    const double part_s = seconds_ / static_cast<double>(parts);
    uint64_t before = 0;
    const auto now_s = [&] { return static_cast<double>(NowNs() - start_ns) * 1e-9; };
    for (double next_s = part_s; !Interrupted() && engine_.status().ok() && now_s() < seconds_;) {
      while (running_.size() < at_once_ && Submit(burn)) {
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      Take(burn);
      if (now_s() < next_s) continue;
      burn->tokens_per_s.push_back(static_cast<double>(burn->tokens - before) / part_s);
      before = burn->tokens;
      next_s += part_s;
    }
    // How long they would take more depends on the model.
    for (Running& running : running_) {
      engine_.Cancel(running.stream->id());
      running.cancelled = true;
    }
    const Deadline deadline = Deadline::After(kDrainMs);
    while (!running_.empty() && !deadline.Passed()) {
      Take(burn);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    burn->seconds = now_s();  // in which all tokens came
    if (!running_.empty())
      burn->Find(absl::StrFormat("%d requests had not ended after %d s more", running_.size(),
                                 kDrainMs / 1000));
  }

 private:
  struct Running {
    BurnRequest request;
    std::shared_ptr<OutputStream> stream;
    std::vector<int32_t> ids;
    bool cancelled = false;
  };

  bool Submit(Burn* burn) {
    Running running{.request = load_.Next()};
    Request request;
    request.prompt = running.request.prompt;
    request.sampling = running.request.sampling;
    request.stop.max_tokens = running.request.max_tokens;
    StatusOr<std::shared_ptr<OutputStream>> stream = engine_.Submit(std::move(request));
    if (!stream.ok()) {
      // A loss is one finding, and the engine's.
      if (engine_.status().ok()) Fail(running.request, stream.status(), burn);
      return false;
    }
    ++burn->requests;
    running.stream = std::move(*stream);
    running_.push_back(std::move(running));
    return true;
  }

  void Fail(const BurnRequest& request, const Status& why, Burn* burn) {
    ++burn->failed;
    burn->FindOfRequest(
        absl::StrFormat("request %d ended with an error: %s", request.number, MessageOf(why)));
  }

  void Take(Burn* burn) {
    for (Running& running : running_) {
      const OutputDelta delta = running.stream->Take();
      running.ids.insert(running.ids.end(), delta.ids.begin(), delta.ids.end());
      burn->tokens += delta.ids.size();
      const int64_t most = running.request.cancel_after;
      if (most >= 0 && !running.cancelled && static_cast<int64_t>(running.ids.size()) >= most) {
        engine_.Cancel(running.stream->id());
        running.cancelled = true;
      }
      if (!delta.finished) continue;
      End(running, burn);
      running.stream.reset();
    }
    std::erase_if(running_, [](const Running& running) { return running.stream == nullptr; });
  }

  void End(const Running& running, Burn* burn) {
    const Summary& summary = running.stream->summary();
    if (summary.reason == FinishReason::kCancelled && running.cancelled) {
      ++burn->cancelled;
      return;
    }
    if (!summary.error.ok()) {
      if (engine_.status().ok()) Fail(running.request, summary.error, burn);
      return;
    }
    if (running.request.again) ++burn->repeated;
    if (load_.Answered(running.request, running.ids)) return;
    ++burn->different;
    burn->FindOfRequest(absl::StrFormat(
        "request %d was answered with other tokens than before: a rank computes wrongly, so look "
        "at its memory first",
        running.request.number));
  }

  Engine& engine_;
  BurnLoad load_;
  const double seconds_;
  const size_t at_once_;
  std::vector<Running> running_;
};

double MeanOf(const std::vector<double>& values, size_t begin, size_t end) {
  if (begin >= end) return 0;
  const auto first = values.begin();
  return std::accumulate(first + static_cast<int64_t>(begin), first + static_cast<int64_t>(end),
                         0.0) /
         static_cast<double>(end - begin);
}

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value.has_value() ? Json(*value) : Json();
}

Json ToJson(const std::optional<Temperature>& one) {
  if (!one.has_value()) return {};
  return {{"sensor", one->sensor},
          {"celsius", one->celsius},
          {"critical_celsius", OrNull(one->critical_celsius)}};
}

Json ToJson(Session& session, const RankHealth& health) {
  const std::string name = session.membership().ranks()[static_cast<size_t>(session.rank())].Name();
  // Pages of the cache are the process's when they are first written: it may come to be as large as
  // it was planned.
  const uint64_t size = std::max(health.resident_first, session.model().memory().lasting());
  const uint64_t growth = size - health.resident_first + std::max(kGrowthBytes, size / kGrowthPart);
  return {{"name", name},
          {"samples", health.samples},
          {"resident_first_bytes", health.resident_first},
          {"resident_last_bytes", health.resident_last},
          {"resident_most_bytes", health.resident_most},
          {"hottest", ToJson(health.worst.hottest)},
          {"nearest_to_critical", ToJson(health.worst.nearest)},
          {"slowest_mhz", OrNull(health.worst.megahertz)},
          {"throttled", OrNull(health.throttles)},
          {"findings", ExamineHealth(name, health, growth)}};
}

// Collective, after the executor has stopped: what every rank's watch has seen.
StatusOr<Json> GatherHealth(Session& session, HealthWatch& watch) {
  const std::string mine =
      ToJson(session, watch.Now()).dump(-1, ' ', false, Json::error_handler_t::replace);
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<std::string> words,
                            GatherWords(session.group(), mine));
  Json all = Json::array();
  for (const std::string& word : words) {
    Json report = Json::parse(word, nullptr, /*allow_exceptions=*/false);
    if (!report.is_object() || !report.contains("findings") || !report["findings"].is_array())
      return InternalError("a rank's report of its health is not one");
    all.push_back(std::move(report));
  }
  return all;
}

void CompareDigests(Session& session, const std::vector<uint64_t>& digests, Burn* burn) {
  // Stages of a pipeline compute different things, and compare within themselves at every step.
  if (session.stages() > 1) return;
  for (size_t rank = 1; rank < digests.size(); ++rank) {
    if (digests[rank] == digests[0]) continue;
    burn->Find(absl::StrFormat("%s and rank 0 have other digests of all they computed",
                               session.membership().ranks()[rank].Name()));
  }
}

void JudgeSpeed(Burn* burn) {
  const std::vector<double>& parts = burn->tokens_per_s;
  const double first = MeanOf(parts, 0, parts.size() / 4);
  const double last = MeanOf(parts, parts.size() - parts.size() / 4, parts.size());
  if (burn->seconds < kLongBurnS || last >= first * kSlower) return;
  burn->Find(absl::StrFormat(
      "the last quarter gave %.1f tokens/s and the first %.1f: look at temperatures and clocks, "
      "and at what else the machines do",
      last, first));
}

Json ReportOf(const Burn& burn, const Json& ranks) {
  Json json = {{"verdict", burn.findings.empty() ? "ok" : "failed"},
               {"findings", burn.findings},
               {"seconds", burn.seconds},
               {"requests", burn.requests},
               {"cancelled", burn.cancelled},
               {"failed", burn.failed},
               {"repeated", burn.repeated},
               {"different", burn.different},
               {"tokens", burn.tokens}};
  const std::vector<double>& parts = burn.tokens_per_s;
  json["tokens_per_s"] = {
      {"all", burn.seconds > 0 ? static_cast<double>(burn.tokens) / burn.seconds : 0},
      {"first_quarter", MeanOf(parts, 0, parts.size() / 4)},
      {"last_quarter", MeanOf(parts, parts.size() - parts.size() / 4, parts.size())},
      {"parts", parts}};
  json["ranks"] = ranks;
  return json;
}

void PrintRank(const Json& rank) {
  const auto bytes = [&](const char* key) { return FormatBytes(rank.value(key, uint64_t{0})); };
  const auto number = [&](const char* key, const char* unit) {
    const Json::json_pointer place(key);
    if (!rank.contains(place) || !rank[place].is_number()) return std::string("not told here");
    return absl::StrFormat("%.0f %s", rank[place].get<double>(), unit);
  };
  std::printf("%s: memory %s at first, %s at the end; hottest %s; slowest clock %s; throttled %s\n",
              rank.value("name", "?").c_str(), bytes("resident_first_bytes").c_str(),
              bytes("resident_last_bytes").c_str(), number("/hottest/celsius", "°C").c_str(),
              number("/slowest_mhz", "MHz").c_str(), number("/throttled", "times").c_str());
}

void Print(const Json& report, bool as_json) {
  if (as_json) {
    std::printf("%s\n", report.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
    return;
  }
  std::printf(
      "%.0f s: %d requests, of which %d repeated others and %d were cancelled; %d tokens, "
      "%.1f tokens/s\n",
      report["seconds"].get<double>(), report["requests"].get<int>(), report["repeated"].get<int>(),
      report["cancelled"].get<int>(), report["tokens"].get<int>(),
      report["tokens_per_s"]["all"].get<double>());
  for (const Json& rank : report["ranks"]) PrintRank(rank);
  for (const Json& finding : report["findings"])
    std::printf("failed: %s\n", finding.get<std::string>().c_str());
  if (report["findings"].empty()) std::printf("ok\n");
}

BurnShape ShapeOf(Session& session, const Options& options) {
  return {.seed = static_cast<uint64_t>(options.seed.value_or(1)),
          .vocab_size = session.model().config().vocab_size,
          .max_model_len = session.model().limits().max_model_len,
          .prefill_chunk = options.prefill_chunk};
}

// Rank 0. An error is the group's; the verdict is in *findings.
Status BurnOnRankZero(const Options& options, const TextSession& opened, HealthWatch& watch,
                      size_t* findings) {
  Session& session = *opened.session;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<GroupExecutor> executor, MakeExecutor(session));
  const std::unique_ptr<Engine> engine = MakeEngine(session, *opened.text, executor.get());
  Burn burn;
  log::Info("burning for %.3g minutes", options.minutes);
  Driver driver(*engine, BurnLoad(ShapeOf(session, options)), options);
  driver.Run(&burn);
  const StatusOr<std::vector<uint64_t>> digests = engine->Stop(ErrorKind{0});
  Status end = digests.status();
  Json ranks = Json::array();
  if (end.ok()) {
    CompareDigests(session, *digests, &burn);
    StatusOr<Json> gathered = GatherHealth(session, watch);
    end = gathered.ok() ? OkStatus() : session.FinalStatus(gathered.status());
    if (gathered.ok()) ranks = std::move(*gathered);
  }
  if (!end.ok()) burn.Find(MessageOf(end));
  for (const Json& rank : ranks) {
    for (const Json& finding : rank["findings"]) burn.Find(finding.get<std::string>());
  }
  JudgeSpeed(&burn);
  if (burn.requests == 0) burn.Find("no request was made");
  Print(ReportOf(burn, ranks), options.json);
  std::fflush(stdout);
  *findings = burn.findings.size();
  return end;
}

Status BurnOnWorker(const TextSession& opened, HealthWatch& watch) {
  Session& session = *opened.session;
  LOCKSTEP_RETURN_IF_ERROR(WorkForRankZero(session, kPatienceMs));
  return GatherHealth(session, watch).status();
}

}  // namespace

Status BurnCommand(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const TextSession opened, OpenTextSession(options));
  const InterruptScope scope;
  Session& session = *opened.session;
  if (AddsAsItLikes(session)) {
    return session.Close(
        UsageError("burn: with --sum-order any, %s adds as it likes, so that the same request may "
                   "rightly have other tokens the next time; leave out --sum-order any",
                   session.group().traits().name));
  }
  const double milliseconds = options.minutes * 60'000;
  HealthWatch watch(std::max<int64_t>(static_cast<int64_t>(milliseconds) / kSamples, 1'000),
                    static_cast<int64_t>(milliseconds / 10));
  if (session.rank() != 0) return session.Close(BurnOnWorker(opened, watch));
  size_t findings = 0;
  const Status end = session.Close(BurnOnRankZero(options, opened, watch, &findings));
  if (findings == 0) return end;
  // After the sentences on stdout, and whatever ended the group: exit code 1.
  return InternalError("the verdict is: failed, for %d reason%s", findings,
                       findings == 1 ? "" : "s");
}

}  // namespace lockstep
