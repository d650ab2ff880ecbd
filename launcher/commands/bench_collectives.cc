// `lockstep bench collectives`: what an all-reduce takes over each transport, beside a bare
// ping-pong on links of the same transport and, under mpirun, beside Open MPI's own. Contestants
// take turns, round by round, so that all meet the same moods of the machine; every sum and every
// echo is checked.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "collectives/choose.h"
#include "launcher/agree.h"
#include "launcher/cluster_yaml.h"
#include "launcher/commands/bench.h"
#include "launcher/commands/contestants.h"
#include "launcher/process.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "transport/fabric.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLargestBytes = int64_t{256} << 20;
// A round of one contestant lasts about as long, but has at least and at most so many repetitions.
constexpr int64_t kRoundNs = 250'000'000;
constexpr int64_t kMostRepetitions = 1000;
constexpr int64_t kFewestRepetitions = 30;
constexpr int64_t kWarmUp = 10;

// --- the rounds ---

// Appends the time of every repetition of one round: the slowest rank's.
Status RunRound(Session& session, const Values& values, std::span<float> data,
                const Contestant& contestant, std::vector<float>* samples_us) {
  std::vector<float> mine_us;
  const auto repeat = [&](int64_t from, int64_t to) -> Status {
    for (int64_t i = from; i < to; ++i) {
      LOCKSTEP_ASSIGN_OR_RETURN(const int64_t took_ns,
                                contestant.run(static_cast<size_t>(i), values, data));
      mine_us.push_back(static_cast<float>(took_ns) * 1e-3f);
    }
    return OkStatus();
  };
  const int64_t start_ns = NowNs();
  LOCKSTEP_RETURN_IF_ERROR(repeat(0, kWarmUp));
  const int64_t fitting = kRoundNs * kWarmUp / (NowNs() - start_ns + 1);
  LOCKSTEP_ASSIGN_OR_RETURN(
      const int64_t repetitions,
      AgreeOnSmallest(session.group(), std::clamp(fitting, kFewestRepetitions, kMostRepetitions)));
  mine_us.clear();
  LOCKSTEP_RETURN_IF_ERROR(repeat(kWarmUp, kWarmUp + repetitions));
  std::vector<float> all_us(mine_us.size() * static_cast<size_t>(session.size()));
  LOCKSTEP_RETURN_IF_ERROR(AllGather(session.group(), std::as_bytes(std::span(mine_us)),
                                     std::as_writable_bytes(std::span(all_us))));
  for (size_t i = 0; i < all_us.size(); ++i) {
    float& slowest = mine_us[i % mine_us.size()];
    slowest = std::max(slowest, all_us[i]);
  }
  samples_us->insert(samples_us->end(), mine_us.begin(), mine_us.end());
  return OkStatus();
}

Status RunRounds(Session& session, const std::vector<int64_t>& sizes, WireFormat wire,
                 std::vector<Contestant>* contestants) {
  for (Contestant& contestant : *contestants) contestant.samples_us.resize(sizes.size());
  for (size_t s = 0; s < sizes.size(); ++s) {
    const Values values(session.rank(), session.size(), sizes[s] / sizeof(float), wire);
    std::vector<float> data(sizes[s] / sizeof(float));
    for (int64_t round = 0; round < session.options().repeat; ++round) {
      for (Contestant& contestant : *contestants) {
        if (Interrupted()) return InterruptedError();
        if (!contestant.possible(static_cast<size_t>(sizes[s]))) continue;
        const Status done = RunRound(session, values, data, contestant, &contestant.samples_us[s]);
        if (!done.ok()) return Annotate(done, "over " + contestant.transport);
      }
    }
  }
  return OkStatus();
}

// --- the report ---

double PercentileUs(std::vector<float> samples_us, size_t percent) {
  const size_t place = std::min(samples_us.size() * percent / 100, samples_us.size() - 1);
  std::nth_element(samples_us.begin(), samples_us.begin() + static_cast<std::ptrdiff_t>(place),
                   samples_us.end());
  return samples_us[place];
}

Json RowsOf(const Session& session, const std::vector<int64_t>& sizes,
            const std::vector<Contestant>& contestants) {
  Json rows = Json::array();
  for (size_t s = 0; s < sizes.size(); ++s) {
    for (const Contestant& contestant : contestants) {
      const std::vector<float>& samples_us = contestant.samples_us[s];
      if (samples_us.empty()) continue;
      const double p50_us = PercentileUs(samples_us, 50);
      rows.push_back({{"transport", contestant.transport},
                      {"algorithm", contestant.algorithm},
                      {"ranks", session.size()},
                      {"dtype", contestant.dtype},
                      {"bytes", sizes[s]},
                      {"reps", samples_us.size()},
                      {"p50_us", p50_us},
                      {"p99_us", PercentileUs(samples_us, 99)},
                      {"gb_per_s", static_cast<double>(sizes[s]) / p50_us * 1e-3},
                      {"chosen", contestant.chosen(static_cast<size_t>(sizes[s]))}});
    }
  }
  return rows;
}

void PrintTable(const Json& rows) {
  std::printf(
      "%d ranks, float32 values that travel as %s (those of MPI_Allreduce as they are); a\n"
      "ping-pong is half a round trip of bare links between ranks 0 and 1, an all-reduce takes as\n"
      "long as its slowest rank, ways that are not taken at that size are in brackets; GB/s are\n"
      "the float32 bytes over the median\n",
      rows.front()["ranks"].get<int>(), rows.front()["dtype"].get<std::string>().c_str());
  std::printf("%10s  %-9s  %-21s %10s %10s %8s  %s\n", "bytes", "transport", "algorithm", "p50 us",
              "p99 us", "GB/s", "of its ping-pong");
  double bare_us = 0;
  for (const Json& row : rows) {
    const auto algorithm = row["algorithm"].get<std::string>();
    const std::string shown = row["chosen"].get<bool>() ? algorithm : "(" + algorithm + ")";
    const auto transport = row["transport"].get<std::string>();
    const auto p50_us = row["p50_us"].get<double>();
    std::printf("%10lld  %-9s  %-21s %10.2f %10.2f %8.3f", row["bytes"].get<long long>(),
                transport.c_str(), shown.c_str(), p50_us, row["p99_us"].get<double>(),
                row["gb_per_s"].get<double>());
    if (algorithm == "ping-pong") {
      bare_us = p50_us;
      std::printf("\n");
    } else if (FindTransport(transport) != nullptr && bare_us > 0) {
      std::printf("  %.2f x\n", p50_us / bare_us);
    } else {
      std::printf("\n");
    }
  }
}

// --- the choice ---

// Up to which sizes each way is the best over a transport, by the sums of slots, which is what
// layers make.
SumLimits BestChoice(const std::vector<int64_t>& sizes, const std::vector<Contestant>& contestants,
                     const std::string& transport, WireFormat wire) {
  // Infinite where there is no such way.
  const auto p50_us = [&](SumAlgorithm algorithm, size_t size) -> double {
    for (const Contestant& item : contestants) {
      const bool right = item.transport == transport && item.algorithm == InSlot(algorithm);
      if (right && !item.samples_us[size].empty()) return PercentileUs(item.samples_us[size], 50);
    }
    return INFINITY;
  };
  std::vector<SumTimes> measured;
  for (size_t s = 0; s < sizes.size(); ++s) {
    const double two_step_us = p50_us(SumAlgorithm::kTwoStep, s);
    if (std::isinf(two_step_us)) continue;
    measured.push_back({WireBytes(wire, static_cast<size_t>(sizes[s]) / sizeof(float)),
                        p50_us(SumAlgorithm::kGather, s), p50_us(SumAlgorithm::kDirect, s),
                        two_step_us});
  }
  // Some transports (nccl) have one way only.
  return measured.empty() ? SumLimits{} : BestSumLimits(measured);
}

// Limits as options say them.
std::array<std::pair<std::string_view, int64_t>, 2> AsOptions(const SumLimits& limits) {
  const auto number = [](std::string_view option, size_t bytes) {
    const auto highest = static_cast<size_t>(FindOption(option)->highest);
    return std::pair(option, static_cast<int64_t>(std::min(bytes, highest)));
  };
  return {number("gather-sum-bytes", limits.gathered_bytes),
          number("direct-sum-bytes", limits.direct_bytes)};
}

std::string Described(const SumLimits& limits) {
  std::string text;
  for (const auto& [option, bytes] : AsOptions(limits)) {
    text += absl::StrFormat("%s--%s %d", text.empty() ? "" : " ", option, bytes);
  }
  return text;
}

// --- the command ---

StatusOr<std::vector<int64_t>> SizesOf(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(auto sizes, ParseCounts(options.sizes, "--sizes", kLargestBytes));
  for (const int64_t bytes : sizes) {
    if (bytes % static_cast<int64_t>(sizeof(float)) == 0) continue;
    return UsageError("--sizes: %d bytes are no whole number of float32 values", bytes);
  }
  std::sort(sizes.begin(), sizes.end());
  return sizes;
}

// What is recorded is for the sums that the cluster's layers make.
Status CheckRecord(const Options& options, const std::vector<std::string>& transports,
                   WireFormat wire) {
  if (options.config.empty())
    return UsageError("--record writes into a cluster YAML: give it with --config");
  if (std::find(transports.begin(), transports.end(), options.collective) == transports.end()) {
    return UsageError(
        "--record needs the times of the cluster's own transport: add %s to "
        "--transports",
        options.collective);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const WireFormat own, WireFormatOf(options.wire));
  if (own == wire) return OkStatus();
  return UsageError(
      "--record needs the times of the cluster's own wire, which is %s: leave out "
      "--dtype, or change --wire",
      options.wire);
}

// Every rank. `options`: as the user gave them.
Status Measure(Session& session, const Options& options, const std::vector<int64_t>& sizes,
               std::vector<std::string> transports, WireFormat wire) {
  if (session.size() < 2) {
    return UsageError("an exchange needs two ranks at least: --ranks 2, mpirun or --config");
  }
  LOCKSTEP_RETURN_IF_ERROR(
      AgreeOnValue(session.group(), session.membership(),
                   {"what to measure",
                    absl::StrFormat("%s of %s bytes as %s, %d rounds", options.transports,
                                    options.sizes, NameOf(wire), options.repeat),
                    "start every rank with the same --transports, --sizes, --dtype and --repeat"}));
  if (transports.empty()) {
    if (session.membership().local_size() == session.size()) transports.push_back("shm");
    transports.push_back("tcp");
  }
  const int64_t longest_bytes = *std::max_element(sizes.begin(), sizes.end());
  LOCKSTEP_ASSIGN_OR_RETURN(
      auto contestants,
      MakeContestants(session, transports, static_cast<size_t>(longest_bytes), wire));
  LOCKSTEP_RETURN_IF_ERROR(RunRounds(session, sizes, wire, &contestants));
  if (session.rank() != 0) return OkStatus();
  const Json rows = RowsOf(session, sizes, contestants);
  if (options.json) {
    std::printf("%s\n", rows.dump().c_str());
  } else {
    PrintTable(rows);
    for (const std::string& transport : transports) {
      std::printf("%s: best are %s; taken are %s\n", transport.c_str(),
                  Described(BestChoice(sizes, contestants, transport, wire)).c_str(),
                  Described(session.group().sum_limits()).c_str());
    }
  }
  if (!options.record) return OkStatus();
  const SumLimits best = BestChoice(sizes, contestants, options.collective, wire);
  LOCKSTEP_RETURN_IF_ERROR(RecordNumbers(options.config, AsOptions(best)));
  log::Info("%s: %s", options.config, Described(best));
  return OkStatus();
}

}  // namespace

Status BenchCollectives(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto sizes, SizesOf(options));
  LOCKSTEP_ASSIGN_OR_RETURN(auto transports,
                            ParseTransports(options, FindOption("collective")->allowed));
  // The option table allows no other names.
  LOCKSTEP_ASSIGN_OR_RETURN(const WireFormat wire,
                            WireFormatOf(options.dtype.empty() ? options.wire : options.dtype));
  if (options.record) {
    if (transports.empty()) transports.push_back(options.collective);
    LOCKSTEP_RETURN_IF_ERROR(CheckRecord(options, transports, wire));
  }
  Options join = options;
  // Only mpirun can start MPI's ranks; with it every transport works.
  if (std::find(transports.begin(), transports.end(), "mpi") != transports.end())
    join.collective = "mpi";
  SessionNeeds needs;
  needs.model = false;
  LOCKSTEP_ASSIGN_OR_RETURN(const std::unique_ptr<Session> session, OpenSession(join, needs));
  const InterruptScope interrupts([&] { session->membership().Abort(InterruptedError()); });
  return session->Close(Measure(*session, options, sizes, transports, wire));
}

}  // namespace lockstep
