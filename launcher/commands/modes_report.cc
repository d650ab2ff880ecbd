#include "launcher/commands/modes_report.h"

#include <algorithm>
#include <cstdio>
#include <functional>
#include <optional>
#include <utility>

#include "absl/strings/str_join.h"
#include "launcher/commands/bench_report.h"
#include "runtime/base/version.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kAddedNote =
    "Latency is ADDED: all that a rank sends is held back for so long before it leaves, on top of "
    "what the links take.";
constexpr size_t kMostDifferences = 20;  // that are shown

bool AddsLatency(const ModesReport& report) {
  for (const ModeRuns& mode : report.modes) {
    for (const ModeReport& round : mode.rounds) {
      for (const ModeTest& test : round.tests)
        if (test.added_latency_us > 0) return true;
    }
  }
  return false;
}

std::string LabelOf(const ModeTest& test) {
  return absl::StrFormat("%s of %d tokens", test.test, test.tokens);
}

// A test in all rounds.
std::vector<const ModeTest*> RoundsOf(const ModeRuns& mode, size_t test) {
  std::vector<const ModeTest*> rounds;
  for (const ModeReport& round : mode.rounds)
    if (test < round.tests.size()) rounds.push_back(&round.tests[test]);
  return rounds;
}

Json RatesIn(const std::vector<const ModeTest*>& rounds) {
  std::vector<double> rates;
  for (const ModeTest* round : rounds)
    rates.insert(rates.end(), round->tokens_per_s.begin(), round->tokens_per_s.end());
  return RatesOf(rates);
}

double Mean(const std::vector<const ModeTest*>& rounds,
            const std::function<double(const ModeTest&)>& value) {
  double sum = 0;
  for (const ModeTest* round : rounds) sum += value(*round);
  return sum / static_cast<double>(rounds.size());
}

Json TestToJson(const std::vector<const ModeTest*>& rounds) {
  const ModeTest& first = *rounds.front();
  Json json = {{"test", first.test},
               {"tokens", first.tokens},
               {"added_latency_us", first.added_latency_us},
               {"tokens_per_second", RatesIn(rounds)}};
  json[first.test == "decode" ? "share_of_bandwidth" : "share_of_peak"] =
      Mean(rounds, [](const ModeTest& round) { return round.share; });
  if (first.wire_bytes.has_value()) {
    json["wire_bytes_per_token"] =
        Mean(rounds, [](const ModeTest& round) { return round.wire_bytes.value_or(0); });
  }
  for (size_t rank = 0; rank < first.ranks.size(); ++rank) {
    const auto mean = [&](double RankTime::*part) {
      return Mean(rounds, [&](const ModeTest& round) {
        return rank < round.ranks.size() ? round.ranks[rank].*part : 0;
      });
    };
    json["us_per_token"].push_back({{"rank", rank},
                                    {"compute", mean(&RankTime::compute)},
                                    {"exchange", mean(&RankTime::exchange)},
                                    {"waiting", mean(&RankTime::waiting)},
                                    {"rest", mean(&RankTime::rest)}});
  }
  return json;
}

Json ModeToJson(const ModeRuns& mode) {
  Json json = {{"mode", mode.mode}, {"ranks", mode.ranks}};
  if (!mode.refused.empty()) json["refused"] = mode.refused;
  if (mode.rounds.empty()) return json;
  const ModeReport& first = mode.rounds.front();
  json["kernels"] = first.kernels;
  json["threads"] = first.threads;
  double read = 0;
  for (const ModeReport& round : mode.rounds) read += round.gb_per_s;
  json["read_gb_per_s"] = read / static_cast<double>(mode.rounds.size());
  for (size_t test = 0; test < first.tests.size(); ++test)
    json["tests"].push_back(TestToJson(RoundsOf(mode, test)));
  return json;
}

Json TokensToJson(const TokenComparison& tokens) {
  Json json = {{"compared", tokens.compared},
               {"equal", tokens.compared - std::ssize(tokens.differences)}};
  for (const TokenDifference& one : tokens.differences) {
    if (json.contains("differences") && json["differences"].size() == kMostDifferences) break;
    json["differences"].push_back({{"mode", one.mode},
                                   {"test", one.test},
                                   {"row", one.row},
                                   {"token", one.token},
                                   {"reference", one.reference},
                                   {"margin", one.margin},
                                   {"allowed", one.allowed},
                                   {"by_rounding", one.by_rounding()}});
  }
  return json;
}

void PrintRow(const Json& mode, const Json& test) {
  const Json& rates = test["tokens_per_second"];
  const bool decode = test["test"] == "decode";
  const std::string range =
      absl::StrFormat("(%.2f .. %.2f)", rates["min"].get<double>(), rates["max"].get<double>());
  std::printf("  %-15s %5d %10.2f %-24s", mode["mode"].get<std::string>().c_str(),
              mode["ranks"].get<int>(), rates["median"].get<double>(), range.c_str());
  std::printf(" %5.1f %% of %s",
              100 * test[decode ? "share_of_bandwidth" : "share_of_peak"].get<double>(),
              decode ? "read" : "peak");
  if (test.contains("wire_bytes_per_token"))
    std::printf(" %12.0f", test["wire_bytes_per_token"].get<double>());
  std::printf("\n");
  for (const Json& rank : test["us_per_token"]) {
    std::printf("      rank %d: %10.1f compute %9.1f exchange %9.1f waiting %9.1f rest\n",
                rank["rank"].get<int>(), rank["compute"].get<double>(),
                rank["exchange"].get<double>(), rank["waiting"].get<double>(),
                rank["rest"].get<double>());
  }
}

size_t TestsOf(const Json& mode) { return mode.contains("tests") ? mode["tests"].size() : 0; }

// One test in all modes.
void PrintTest(const Json& modes, size_t index) {
  bool first = true;
  for (const Json& mode : modes) {
    if (TestsOf(mode) <= index) continue;
    const Json& test = mode["tests"][index];
    if (std::exchange(first, false)) {
      std::printf("\n%s of %d tokens", test["test"].get<std::string>().c_str(),
                  test["tokens"].get<int>());
      if (test["added_latency_us"] != 0)
        std::printf(", %d us of latency ADDED", test["added_latency_us"].get<int>());
      std::printf("\n  %-15s %5s %10s %-24s %15s %12s\n", "mode", "ranks", "tokens/s", "", "share",
                  "sent B/token");
    }
    PrintRow(mode, test);
  }
}

ChartPoint PointOf(const std::vector<const ModeTest*>& rounds) {
  const Json rates = RatesIn(rounds);
  return {rates["median"].get<double>(), rates["min"].get<double>(), rates["max"].get<double>()};
}

// What the panels of a chart are made of: a test (without its latency) and the modes' points.
class Curves {
 public:
  explicit Curves(const ModesReport& report) : report_(report) {
    for (const ModeRuns& mode : report.modes) {
      if (mode.rounds.empty()) continue;
      if (mode.mode != "single") AddOnce(&counts_, mode.ranks);
      for (const ModeTest& test : mode.rounds.front().tests) {
        AddOnce(&labels_, LabelOf(test));
        AddOnce(&latencies_, test.added_latency_us);
      }
    }
  }

  std::vector<ChartPanel> Panels() const {
    std::vector<ChartPanel> panels;
    for (const std::string& label : labels_) {
      if (latencies_.size() == 1 && counts_.size() <= 1) panels.push_back(OverModes(label));
    }
    for (const int count : latencies_.size() > 1 ? counts_ : std::vector<int>{}) {
      for (const std::string& label : labels_) panels.push_back(OverLatency(label, count));
    }
    for (const std::string& label : labels_) {
      if (counts_.size() > 1) panels.push_back(OverRanks(label));
    }
    return panels;
  }

 private:
  template <typename T>
  static void AddOnce(std::vector<T>* list, const T& value) {
    if (std::find(list->begin(), list->end(), value) == list->end()) list->push_back(value);
  }

  std::optional<ChartPoint> Find(const ModeRuns& mode, const std::string& label,
                                 int64_t latency_us) const {
    if (mode.rounds.empty()) return std::nullopt;
    const std::vector<ModeTest>& tests = mode.rounds.front().tests;
    for (size_t i = 0; i < tests.size(); ++i) {
      if (LabelOf(tests[i]) == label && tests[i].added_latency_us == latency_us)
        return PointOf(RoundsOf(mode, i));
    }
    return std::nullopt;
  }

  ChartPanel OverModes(const std::string& label) const {
    ChartPanel panel = {label, "", "tokens/s", {}, {}};
    for (const ModeRuns& mode : report_.modes) {
      if (mode.rounds.empty()) continue;
      ChartLine line = {mode.mode, {}};
      line.points.resize(panel.places.size());
      line.points.push_back(Find(mode, label, latencies_.front()));
      panel.places.push_back(mode.mode);
      panel.lines.push_back(std::move(line));
    }
    return panel;
  }

  ChartPanel OverLatency(const std::string& label, int count) const {
    ChartPanel panel = {
        absl::StrFormat("%s, %d ranks", label, count), "added latency, us", "tokens/s", {}, {}};
    for (const int64_t latency : latencies_) panel.places.push_back(std::to_string(latency));
    for (const ModeRuns& mode : report_.modes) {
      if (mode.rounds.empty() || (mode.ranks != count && mode.mode != "single")) continue;
      ChartLine line = {mode.mode, {}};
      for (const int64_t latency : latencies_) line.points.push_back(Find(mode, label, latency));
      panel.lines.push_back(std::move(line));
    }
    return panel;
  }

  ChartPanel OverRanks(const std::string& label) const {
    const int64_t least = *std::min_element(latencies_.begin(), latencies_.end());
    ChartPanel panel = {
        absl::StrFormat("%s, %d us added", label, least), "ranks", "tokens/s", {}, {}};
    std::vector<int> counts = counts_;
    counts.insert(counts.begin(), 1);
    std::sort(counts.begin(), counts.end());
    for (const int count : counts) panel.places.push_back(std::to_string(count));
    for (const ModeRuns& mode : report_.modes) {
      const auto known =
          std::find_if(panel.lines.begin(), panel.lines.end(),
                       [&](const ChartLine& line) { return line.name == mode.mode; });
      ChartLine& line =
          known == panel.lines.end() ? panel.lines.emplace_back(ChartLine{mode.mode, {}}) : *known;
      line.points.resize(counts.size());
      const auto place = std::find(counts.begin(), counts.end(), mode.ranks) - counts.begin();
      line.points[static_cast<size_t>(place)] = Find(mode, label, least);
    }
    return panel;
  }

  const ModesReport& report_;
  std::vector<std::string> labels_;
  std::vector<int64_t> latencies_;
  std::vector<int> counts_;  // of ranks, but for one node
};

}  // namespace

std::string ModeRuns::Name() const {
  return ranks == 1 ? mode : absl::StrFormat("%s, %d ranks", mode, ranks);
}

StatusOr<TokenComparison> CompareTokens(const std::vector<ModeRuns>& modes) {
  TokenComparison comparison;
  const ModeRuns* reference = nullptr;
  for (const ModeRuns& mode : modes) {
    if (mode.rounds.empty()) continue;
    if (reference == nullptr) reference = &mode;
    comparison.reference = reference->Name();
    const ModeReport& wanted = reference->rounds.front();
    for (const ModeReport& round : mode.rounds) {
      const double allowed = 2 * std::max(wanted.logit_error, round.logit_error);
      if (round.tests.size() != wanted.tests.size())
        return InternalError("%s ran %d tests, %s %d", mode.Name(), round.tests.size(),
                             reference->Name(), wanted.tests.size());
      for (size_t i = 0; i < round.tests.size(); ++i) {
        const std::vector<BestToken>& got = round.tests[i].best;
        const std::vector<BestToken>& want = wanted.tests[i].best;
        if (got.size() != want.size() || got.empty())
          return InternalError("%s chose %d tokens in %s, %s %d", mode.Name(), got.size(),
                               LabelOf(round.tests[i]), reference->Name(), want.size());
        if (&round == &wanted) continue;
        comparison.compared += std::ssize(got);
        for (size_t row = 0; row < got.size(); ++row) {
          if (got[row].token == want[row].token) continue;
          comparison.differences.push_back(
              {mode.Name(), LabelOf(round.tests[i]), static_cast<int64_t>(row), got[row].token,
               want[row].token, std::max(got[row].margin, want[row].margin), allowed});
        }
      }
    }
  }
  return comparison;
}

Json ModesToJson(const ModesReport& report, const TokenComparison& tokens) {
  Json all = {{"benchmark", "modes"},          {"version", SourceVersion()},
              {"model", report.model},         {"nodes", report.nodes},
              {"rounds", report.rounds},       {"modes", Json::array()},
              {"tokens", TokensToJson(tokens)}};
  if (AddsLatency(report)) all["note"] = kAddedNote;
  for (const ModeRuns& mode : report.modes) all["modes"].push_back(ModeToJson(mode));
  return all;
}

void PrintModes(const Json& all) {
  std::printf("%s on %s, by turns in %d round(s): median (range) of tokens/s, means of us/token\n",
              all["model"].get<std::string>().c_str(), all["nodes"].get<std::string>().c_str(),
              all["rounds"].get<int>());
  if (all.contains("note")) std::printf("%s\n", all["note"].get<std::string>().c_str());
  for (const Json& mode : all["modes"]) {
    if (mode.contains("refused"))
      std::printf("%s on %d ranks was not measured: %s\n", mode["mode"].get<std::string>().c_str(),
                  mode["ranks"].get<int>(), mode["refused"].get<std::string>().c_str());
  }
  size_t tests = 0;
  for (const Json& mode : all["modes"]) tests = std::max(tests, TestsOf(mode));
  for (size_t i = 0; i < tests; ++i) PrintTest(all["modes"], i);
  const Json& tokens = all["tokens"];
  std::printf("\n%d of %d tokens equal those of the first mode\n", tokens["equal"].get<int>(),
              tokens["compared"].get<int>());
}

std::string DrawModes(const ModesReport& report) {
  std::vector<std::string> notes = {absl::StrFormat(
      "%s; medians of %d round(s) by turns, ranges as lines", report.nodes, report.rounds)};
  if (AddsLatency(report)) notes.emplace_back(kAddedNote);
  return DrawCharts("lockstep bench modes: " + report.model, notes, Curves(report).Panels());
}

Status VerdictOf(const ModesReport& report, const TokenComparison& tokens) {
  for (const TokenDifference& one : tokens.differences) {
    if (one.by_rounding()) continue;
    return InternalError(
        "%s does not compute what %s computes: in row %d of %s its best token is %d and not %d, "
        "%.3g deviations ahead of the next, where rounding explains %.3g (docs/numerics.md)",
        one.mode, tokens.reference, one.row, one.test, one.token, one.reference, one.margin,
        one.allowed);
  }
  std::vector<std::string> refused;
  for (const ModeRuns& mode : report.modes) {
    if (!mode.refused.empty()) refused.push_back(mode.Name() + ": " + mode.refused);
  }
  if (refused.empty()) return OkStatus();
  return UsageError("not measured: %s; --modes chooses what is compared",
                    absl::StrJoin(refused, "; "));
}

}  // namespace lockstep
