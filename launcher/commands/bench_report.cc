#include "launcher/commands/bench_report.h"

#include <algorithm>
#include <cstdio>
#include <optional>
#include <vector>

#include "launcher/commands/bench.h"
#include "runtime/base/version.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

double Sum(const Json& ranks, const char* key) {
  double sum = 0;
  for (const Json& rank : ranks) sum += rank[key].get<double>();
  return sum;
}

double ProductSum(const Json& ranks, const char* key) {
  double sum = 0;
  for (const Json& rank : ranks) {
    for (const Json& op : rank["ops"]) sum += op["outputs"] != 0 ? op[key].get<double>() : 0;
  }
  return sum;
}

// Of one repetition, of all sequences.
double TokensOf(const Json& test) {
  return test["tokens"].get<double>() * test["batch"].get<double>();
}

Json RatesOfTest(const Json& test) {
  std::vector<double> rates;
  for (const Json& seconds : test["seconds"])
    rates.push_back(TokensOf(test) / seconds.get<double>());
  return RatesOf(rates);
}

double ReadOf(const BenchReport& report) {
  return (report.read_before_gb_per_s + report.read_after_gb_per_s) / 2;
}

// What a product reaches of what bounds it: of reading where tokens are decoded, of arithmetic in
// prompts. All ranks were measured together there, and rank 0 has an equal part of that.
const char* ShareName(bool decode) { return decode ? "share_of_bandwidth" : "share_of_peak"; }

double ShareOf(const BenchReport& report, bool decode, const Json& time) {
  const double reached = time[decode ? "gb_per_s" : "gop_per_s"].get<double>();
  return PartOf(reached * report.ranks, decode ? ReadOf(report) : report.peak.gop_per_s);
}

bool IsDecode(const Json& test) { return test["decode"].get<bool>(); }

// Every rank's time per token; what is exchanged beside the computation (--overlap-rows) counts in
// both.
Json SplitOf(const Json& test, double tokens) {
  Json split = Json::array();
  for (const Json& rank : test["ranks"]) {
    const Json stage = rank.value("stage", Json::object());
    const auto of_stage = [&](const char* key) { return stage.value(key, 0.0); };
    double compute_ns = 0;
    for (const Json& op : rank["ops"]) compute_ns += op["ns"].get<double>();
    const double within_ns = rank["exchange"]["wait_ns"].get<double>();
    const double exchange_ns =
        rank["exchange"]["ns"].get<double>() - within_ns + of_stage("send_ns");
    const double wait_ns = within_ns + of_stage("wait_ns");
    const double rest_ns = rank["ns"].get<double>() - compute_ns - exchange_ns - wait_ns;
    split.push_back({{"rank", rank["rank"]},
                     {"compute", compute_ns * 1e-3 / tokens},
                     {"exchange", exchange_ns * 1e-3 / tokens},
                     {"waiting", wait_ns * 1e-3 / tokens},
                     {"rest", std::max(rest_ns, 0.0) * 1e-3 / tokens}});
  }
  return split;
}

// Bytes that all ranks sent, where they are counted.
std::optional<double> WireBytes(const Json& ranks) {
  double bytes = 0;
  for (const Json& rank : ranks) {
    if (!rank["exchange"].contains("bytes")) return std::nullopt;
    bytes += rank["exchange"]["bytes"].get<double>();
    if (rank.contains("stage")) bytes += rank["stage"]["bytes"].get<double>();
  }
  return bytes;
}

// Rank 0's time per token, op by op: the longest first, then what exchanges took, then the rest.
Json TimesOf(const BenchReport& report, const Json& test, double repeat) {
  const double tokens = TokensOf(test) * repeat;
  const Json& rank = test["ranks"][0];
  double total_ns = 0;
  for (const Json& seconds : test["seconds"]) total_ns += seconds.get<double>() * 1e9;
  Json times = Json::array();
  double known_ns = 0;
  const auto add = [&](Json time, double ns) {
    time["calls_per_token"] = time["calls"].get<double>() / tokens;
    time.erase("calls");
    time["us_per_token"] = ns * 1e-3 / tokens;
    time["share"] = ns / total_ns;
    known_ns += ns;
    times.push_back(std::move(time));
  };
  for (const Json& op : rank["ops"]) {
    const double ns = op["ns"].get<double>();
    Json time = {{"op", op["op"]}, {"calls", op["calls"]}};
    if (op["outputs"] != 0) {
      time["outputs"] = op["outputs"];
      time["inputs"] = op["inputs"];
    }
    if (op["bytes"] != 0) {
      time["gb_per_s"] = op["bytes"].get<double>() / ns;
      time["gop_per_s"] = op["operations"].get<double>() / ns;
      // The peak is that of products; attention is float32.
      if (IsDecode(test) || op["outputs"] != 0) {
        time[ShareName(IsDecode(test))] = ShareOf(report, IsDecode(test), time);
      }
    }
    add(std::move(time), ns);
  }
  std::stable_sort(times.begin(), times.end(), [](const Json& a, const Json& b) {
    return a["us_per_token"].get<double>() > b["us_per_token"].get<double>();
  });
  if (test["ranks"].size() > 1)
    add({{"op", "exchange"}, {"calls", rank["exchange"]["calls"]}}, rank["exchange"]["ns"]);
  // Exchanges beside the computation (--overlap-rows) may take longer than what is left.
  add({{"op", "rest"}, {"calls", 0}}, std::max(0.0, total_ns - known_ns));
  return times;
}

Json FiguresOf(const BenchReport& report, const Json& test) {
  const Json& ranks = test["ranks"];
  const double tokens = test["tokens"].get<double>();
  const auto repeat = static_cast<double>(test["seconds"].size());
  const bool decode = IsDecode(test);
  Json figures = {{"test", decode ? "decode" : "prefill"},
                  {"tokens", test["tokens"]},
                  {"added_latency_us", test["added_latency_us"]}};
  if (decode) {
    figures["context"] = test["context"];
    figures["batch"] = test["batch"];
  }
  figures["tokens_per_second"] = RatesOfTest(test);
  const double rate = figures["tokens_per_second"]["median"].get<double>();
  if (decode) {
    // Sequences that are decoded together share what they read: what the products really took.
    const double step_bytes = ProductSum(ranks, "bytes") / (tokens * repeat);
    figures["product_bytes_per_step"] = step_bytes;
    const double batch = test["batch"].get<double>();
    const double weights = batch > 1 ? step_bytes / batch : Sum(ranks, "weight_bytes_per_token");
    // A token reads all positions before it and its own.
    const double positions = test["context"].get<double>() + (tokens + 1) / 2;
    const double cache = Sum(ranks, "kv_bytes_per_position") * positions;
    figures["weight_bytes_per_token"] = weights;
    figures["kv_bytes_per_token"] = cache;
    figures["bytes_per_token"] = weights + cache;
    figures["gb_per_s"] = rate * (weights + cache) * 1e-9;
    figures["share_of_bandwidth"] = PartOf(rate * (weights + cache) * 1e-9, ReadOf(report));
  } else {
    const double operations = ProductSum(ranks, "operations") / (tokens * repeat);
    figures["operations_per_token"] = operations;
    figures["gop_per_s"] = rate * operations * 1e-9;
    figures["share_of_peak"] = PartOf(rate * operations * 1e-9, report.peak.gop_per_s);
    figures["product_bytes_per_prompt"] = ProductSum(ranks, "bytes") / repeat;
  }
  if (report.stages > 1) {
    double seconds = 0;
    for (const Json& sample : test["seconds"]) seconds += sample.get<double>();
    for (const Json& rank : ranks)
      figures["occupancy"].push_back(rank["stage"]["compute_ns"].get<double>() * 1e-9 / seconds);
  }
  figures["us_per_token"] = SplitOf(test, TokensOf(test) * repeat);
  if (const std::optional<double> bytes = WireBytes(ranks); bytes.has_value())
    figures["wire_bytes_per_token"] = *bytes / (TokensOf(test) * repeat);
  figures["best_tokens"] = test["best_tokens"];
  if (report.benchmark == "steps") return figures;
  figures["times_of_rank_0"] = TimesOf(report, test, repeat);
  figures["ranks"] = ranks;
  return figures;
}

// The part by which what is there differs from the plan, without what the process itself takes.
double Excess(const Json& memory, const char* real, const char* planned) {
  const double own = memory[real].get<double>() - memory["process_bytes"].get<double>();
  return own / memory[planned].get<double>() - 1;
}

Json MemoryOf(Json memory) {
  for (Json& rank : memory) {
    rank["excess"] = Excess(rank, "resident_bytes", "planned_bytes");
    rank["excess_while_loading"] = Excess(rank, "peak_while_loading_bytes", "planned_peak_bytes");
  }
  return memory;
}

void PrintTimes(const Json& test) {
  const bool decode = test["test"] == "decode";
  std::printf("  %-40s %12s %12s %7s %9s %9s %8s\n", "op (rank 0)", "calls/token", "us/token",
              "share", "GB/s", "Gop/s", decode ? "of read" : "of peak");
  for (const Json& time : test["times_of_rank_0"]) {
    std::string name = time["op"];
    if (time.contains("outputs")) {
      name += " " + std::to_string(time["outputs"].get<int64_t>()) + " x " +
              std::to_string(time["inputs"].get<int64_t>());
    }
    std::printf("  %-40s %12.3f %12.2f %6.1f%%", name.c_str(),
                time["calls_per_token"].get<double>(), time["us_per_token"].get<double>(),
                100 * time["share"].get<double>());
    if (time.contains("gb_per_s")) {
      std::printf(" %9.2f %9.1f", time["gb_per_s"].get<double>(), time["gop_per_s"].get<double>());
      if (time.contains(ShareName(decode)))
        std::printf(" %7.1f%%", 100 * time[ShareName(decode)].get<double>());
    }
    std::printf("\n");
  }
}

void PrintTest(const Json& test, double read) {
  const Json& rates = test["tokens_per_second"];
  std::printf("\n%s of %d tokens", test["test"].get<std::string>().c_str(),
              test["tokens"].get<int>());
  if (test["added_latency_us"] != 0)
    std::printf(", %d us of latency ADDED to what ranks send", test["added_latency_us"].get<int>());
  if (test.contains("context")) std::printf(" behind a context of %d", test["context"].get<int>());
  std::printf(": %.2f tokens/s (%.2f .. %.2f)\n", rates["median"].get<double>(),
              rates["min"].get<double>(), rates["max"].get<double>());
  if (test.contains("gb_per_s")) {
    std::printf(
        "  a token reads %.4f GB of weights and %.4f GB of cache: %.2f GB/s, %.1f %% of "
        "%.2f GB/s\n",
        test["weight_bytes_per_token"].get<double>() * 1e-9,
        test["kv_bytes_per_token"].get<double>() * 1e-9, test["gb_per_s"].get<double>(),
        100 * test["share_of_bandwidth"].get<double>(), read);
  } else {
    std::printf("  a token takes %.3f G operations of products: %.1f Gop/s, %.1f %% of peak\n",
                test["operations_per_token"].get<double>() * 1e-9, test["gop_per_s"].get<double>(),
                100 * test["share_of_peak"].get<double>());
  }
  if (test.contains("occupancy")) {
    std::printf("  part of the time that each rank computes:");
    for (const Json& part : test["occupancy"]) std::printf(" %.1f %%", 100 * part.get<double>());
    std::printf("\n");
  }
  for (const Json& rank : test["us_per_token"]) {
    std::printf("  rank %d: %.1f us/token in ops, %.1f in exchanges, %.1f waiting, %.1f rest\n",
                rank["rank"].get<int>(), rank["compute"].get<double>(),
                rank["exchange"].get<double>(), rank["waiting"].get<double>(),
                rank["rest"].get<double>());
  }
  if (test.contains("wire_bytes_per_token"))
    std::printf("  all ranks send %.0f bytes/token\n", test["wire_bytes_per_token"].get<double>());
  if (test.contains("times_of_rank_0")) PrintTimes(test);
}

void PrintTable(const Json& all) {
  const Json& read = all["read_gb_per_s"];
  std::printf("%s, %d ranks of %d threads, exchange %s, sums as %s\n",
              all["kernels"].get<std::string>().c_str(), all["ranks"].get<int>(),
              all["threads"].get<int>(), all["collective"].get<std::string>().c_str(),
              all["wire"].get<std::string>().c_str());
  std::printf(
      "memory reads %.2f GB/s before and %.2f GB/s after (a word of every line, "
      "the best of some passes, all ranks)\n",
      read["before"].get<double>(), read["after"].get<double>());
  std::printf("peak %.0f Gop/s (%s in registers); warm-up: %s\n",
              all["peak_gop_per_s"].get<double>(),
              all["peak_instruction"].get<std::string>().c_str(),
              all["warm_up"].get<std::string>().c_str());
  for (size_t rank = 0; rank < all["memory"].size(); ++rank) {
    const Json& memory = all["memory"][rank];
    const auto mb = [&](const char* key) { return memory[key].get<double>() * 1e-6; };
    std::printf(
        "memory of rank %d: planned %.1f MB, resident %.1f MB without the process's own "
        "%.1f (%+.1f %%); while loading %.1f MB, planned %.1f\n",
        static_cast<int>(rank), mb("planned_bytes"), mb("resident_bytes") - mb("process_bytes"),
        mb("process_bytes"), 100 * memory["excess"].get<double>(),
        mb("peak_while_loading_bytes") - mb("process_bytes"), mb("planned_peak_bytes"));
  }
  const double mean = (read["before"].get<double>() + read["after"].get<double>()) / 2;
  for (const Json& test : all["tests"]) PrintTest(test, mean);
}

}  // namespace

Json RatesOf(const std::vector<double>& rates) {
  std::vector<double> sorted = rates;
  std::sort(sorted.begin(), sorted.end());
  const size_t middle = sorted.size() / 2;
  const double median =
      sorted.size() % 2 == 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
  return {{"median", median}, {"min", sorted.front()}, {"max", sorted.back()}, {"samples", rates}};
}

Json ReadWays() {
  Json ways = Json::array();
  for (const auto& way : kernels::ReadTest::kWays) {
    ways.push_back({{"streams", way.streams}, {"ahead_bytes", way.ahead_bytes}});
  }
  return ways;
}

Json BenchToJson(const BenchReport& report, const Options& options) {
  Json all = {{"benchmark", report.benchmark},
              {"version", SourceVersion()},
              {"model", options.model},
              {"kernels", report.kernels},
              {"mode", report.stages > 1 ? "pipeline" : "tensor"},
              {"stages", report.stages},
              {"stage_link", report.stages > 1 ? Json(options.stage_link) : Json()},
              {"ranks", report.ranks},
              {"threads", report.threads},
              {"collective", report.collective},
              {"wire", options.wire},
              {"prefill_chunk", report.chunk},
              {"repeat", options.repeat},
              {"warm_up", report.warm_up},
              {"read_gb_per_s",
               {{"before", report.read_before_gb_per_s},
                {"after", report.read_after_gb_per_s},
                {"ways", ReadWays()}}},
              {"peak_gop_per_s", report.peak.gop_per_s},
              {"peak_instruction", report.peak.instruction},
              {"logit_error", report.logit_error},
              {"memory", MemoryOf(report.memory)},
              {"tests", Json::array()}};
  for (const Json& test : report.tests) all["tests"].push_back(FiguresOf(report, test));
  return all;
}

void PrintBenchReport(const BenchReport& report, const Options& options) {
  const Json all = BenchToJson(report, options);
  if (options.json) {
    std::printf("%s\n", all.dump(-1, ' ', false, Json::error_handler_t::replace).c_str());
  } else {
    PrintTable(all);
  }
}

}  // namespace lockstep
