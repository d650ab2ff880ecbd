// `lockstep bench`: which benchmark, and what all of them measure of the machine.
#include "launcher/commands/bench.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <span>

#include "absl/strings/str_join.h"
#include "launcher/agree.h"
#include "launcher/commands/commands.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

constexpr int64_t kLongestLatencyUs = 1'000'000;
constexpr int kReadPasses = 3 * std::size(kernels::ReadTest::kWays);

}  // namespace

std::vector<std::string> SplitAtCommas(std::string_view text) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t comma = std::min(text.find(',', begin), text.size());
    parts.emplace_back(text.substr(begin, comma - begin));
    begin = comma + 1;
  }
  return parts;
}

StatusOr<std::vector<int64_t>> ParseCounts(std::string_view text, const char* flag, int64_t highest,
                                           int64_t lowest) {
  std::vector<int64_t> counts;
  for (const std::string& part : SplitAtCommas(text)) {
    int64_t value = 0;
    bool whole = !part.empty();
    for (const char digit : part) {
      whole = whole && digit >= '0' && digit <= '9' && value <= highest;
      if (whole) value = value * 10 + (digit - '0');
    }
    if (!whole || value < lowest || value > highest) {
      return UsageError("%s: '%s' is not a whole number in %d .. %d; several are parted by commas",
                        flag, part, lowest, highest);
    }
    counts.push_back(value);
  }
  return counts;
}

StatusOr<std::vector<int64_t>> ParseLatencies(const Options& options) {
  return ParseCounts(options.added_latency_us, "--added-latency-us", kLongestLatencyUs, 0);
}

StatusOr<std::vector<std::string>> ParseTransports(const Options& options,
                                                   const std::vector<const char*>& allowed) {
  if (options.transports == "auto") return std::vector<std::string>{};
  std::vector<std::string> transports = SplitAtCommas(options.transports);
  for (const std::string& transport : transports) {
    if (std::find(allowed.begin(), allowed.end(), transport) != allowed.end()) continue;
    return UsageError("--transports: '%s' is not one of %s; auto means what works here", transport,
                      absl::StrJoin(allowed, ", "));
  }
  return transports;
}

StatusOr<double> MeasureRead(Session& session) {
  struct Pass {
    double seconds = 0;
    double bytes = 0;
  };
  // The memory of a device is another one, which is not read here.
  const int64_t mine_is_read = session.backend().memory().has_value() ? 0 : 1;
  LOCKSTEP_ASSIGN_OR_RETURN(const int64_t read, AgreeOnSmallest(session.group(), mine_is_read));
  if (read == 0) return 0.0;
  LOCKSTEP_ASSIGN_OR_RETURN(kernels::ReadTest test, kernels::ReadTest::Create(session.pool()));
  const auto ranks = static_cast<size_t>(session.size());
  double best = 0;
  for (int pass = 0; pass < kReadPasses; ++pass) {
    LOCKSTEP_RETURN_IF_ERROR(Barrier(session.group()));
    const Pass mine{test.Pass(session.pool()), static_cast<double>(test.bytes())};
    std::vector<Pass> all(ranks);
    LOCKSTEP_RETURN_IF_ERROR(AllGather(session.group(), std::as_bytes(std::span(&mine, 1)),
                                       std::as_writable_bytes(std::span(all))));
    std::map<std::string, Pass> hosts;
    for (size_t rank = 0; rank < ranks; ++rank) {
      Pass& host = hosts[session.membership().ranks()[rank].host];
      host.seconds = std::max(host.seconds, all[rank].seconds);
      host.bytes += all[rank].bytes;
    }
    double gb_per_s = 0;
    for (const auto& [name, host] : hosts) gb_per_s += host.bytes / host.seconds * 1e-9;
    best = std::max(best, gb_per_s);
  }
  return best;
}

StatusOr<kernels::PeakArithmetic> MeasurePeak(Session& session) {
  LOCKSTEP_RETURN_IF_ERROR(Barrier(session.group()));
  kernels::PeakArithmetic peak =
      kernels::MeasurePeak(session.backend().product_loop(), session.pool());
  std::vector<double> all(static_cast<size_t>(session.size()));
  LOCKSTEP_RETURN_IF_ERROR(AllGather(session.group(),
                                     std::as_bytes(std::span<const double>(&peak.gop_per_s, 1)),
                                     std::as_writable_bytes(std::span(all))));
  peak.gop_per_s = 0;
  if (std::find(all.begin(), all.end(), 0.0) != all.end()) return peak;
  for (const double rank : all) peak.gop_per_s += rank;
  return peak;
}

StatusOr<std::vector<std::string>> GatherWords(Group& group, const std::string& mine) {
  if (mine.size() >= kLongestWord) return InternalError("a report of %d bytes", mine.size());
  std::vector<std::byte> padded(kLongestWord);
  std::memcpy(padded.data(), mine.data(), mine.size());
  std::vector<std::byte> all(kLongestWord * static_cast<size_t>(group.size()));
  LOCKSTEP_RETURN_IF_ERROR(AllGather(group, padded, all));
  std::vector<std::string> words;
  for (size_t at = 0; at < all.size(); at += kLongestWord) {
    const auto* text = reinterpret_cast<const char*>(all.data() + at);
    words.emplace_back(text, strnlen(text, kLongestWord));
  }
  return words;
}

Status BenchCommand(const Options& options) {
  if (options.record && options.benchmark != "collectives")
    log::Warning("--record has no effect on `lockstep bench %s`", options.benchmark);
  const bool steps = options.benchmark != "kernels" && options.benchmark != "collectives" &&
                     options.benchmark != "serve";
  if (!steps && options.added_latency_us != Options().added_latency_us) {
    return UsageError("--added-latency-us is for steps of a model; `lockstep bench %s` has none",
                      options.benchmark);
  }
  if (options.benchmark == "kernels") return BenchKernels(options);
  if (options.benchmark == "decode") return BenchDecode(options);
  if (options.benchmark == "prefill") return BenchPrefill(options);
  if (options.benchmark == "collectives") return BenchCollectives(options);
  if (options.benchmark == "steps") return BenchSteps(options);
  if (options.benchmark == "modes") return BenchModes(options);
  if (options.benchmark == "serve") return BenchServe(options);
  return UsageError(
      "what to measure? lockstep bench kernels, lockstep bench collectives --ranks 2, lockstep "
      "bench decode --model DIR, lockstep bench prefill --model DIR, lockstep bench modes --model "
      "DIR --ranks 2, or lockstep bench serve --url http://HOST:PORT");
}

}  // namespace lockstep
