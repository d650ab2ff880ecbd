// `lockstep bench collectives`: what an all-reduce takes over each transport, beside a bare
// ping-pong on links of the same transport and, under mpirun, beside Open MPI's own. Contestants
// take turns, round by round, so that all meet the same moods of the machine; every sum and every
// echo is checked.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <utility>

#include "collectives/choose.h"
#include "collectives/open_mpi.h"
#include "launcher/agree.h"
#include "launcher/cluster_yaml.h"
#include "launcher/commands/bench.h"
#include "launcher/commands/ping_pong.h"
#include "launcher/process.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kLargestBytes = int64_t{256} << 20;
// A round of one contestant lasts about as long, but has at least and at most so many repetitions.
constexpr int64_t kRoundNs = 250'000'000;
constexpr int64_t kMostRepetitions = 1000;
constexpr int64_t kFewestRepetitions = 30;
constexpr int64_t kWarmUp = 10;
// Addends are below 2^8 in magnitude, with 24 bits each.
constexpr float kSlackInAnyOrder = 0x1p-14f;

// What all ranks contribute to a sum: values of very different sizes, so that another order of
// additions or a rank's older contribution shows in the bits. Repetitions differ by powers of two,
// which scale every sum exactly.
class Values {
 public:
  Values(int rank, int ranks, size_t count, WireFormat wire)
      : ranks_(ranks), mine_(count), sum_(count), exact_sum_(count) {
    for (size_t i = 0; i < count; ++i) mine_[i] = Of(rank, i);
    std::vector<float> values(count), rounded(count);
    for (int from = 0; from < ranks; ++from) {
      for (size_t i = 0; i < count; ++i) values[i] = Of(from, i);
      for (size_t i = 0; i < count; ++i) exact_sum_[i] += values[i];
      const auto bytes = std::as_writable_bytes(std::span(values));
      Pack(wire, bytes);
      Unpack(wire, bytes.first(WireBytes(wire, count)), rounded);
      for (size_t i = 0; i < count; ++i) sum_[i] = from == 0 ? rounded[i] : sum_[i] + rounded[i];
    }
  }

  void Fill(size_t repetition, std::span<float> data) const {
    const float scale = Scale(repetition);
    for (size_t i = 0; i < data.size(); ++i) data[i] = mine_[i] * scale;
  }
  // The sum in rank order of what travels, to the bit.
  Status Check(size_t repetition, std::span<const float> data) const {
    return Near(sum_, repetition, data, 0);
  }
  // A sum of the float32 values in any order; `slack` is how far it may be, per rank.
  Status CheckInAnyOrder(size_t repetition, std::span<const float> data, float slack) const {
    return Near(exact_sum_, repetition, data, slack);
  }

 private:
  Status Near(std::span<const float> sum, size_t repetition, std::span<const float> data,
              float slack) const {
    const float scale = Scale(repetition);
    bool right = true;
    for (size_t i = 0; i < data.size(); ++i) {
      right &= std::abs(data[i] - sum[i] * scale) <= slack * static_cast<float>(ranks_) * scale;
    }
    return right ? OkStatus()
                 : InternalError("repetition %d: an all-reduce of %d bytes has a wrong sum",
                                 repetition, data.size_bytes());
  }

  static float Of(int rank, size_t i) {
    const uint32_t mixed =
        (static_cast<uint32_t>(i) + 1) * 2'654'435'761u ^ (static_cast<uint32_t>(rank) + 1) * 97u;
    const auto fraction = static_cast<float>(mixed >> 8) * 0x1p-23f - 1.0f;
    return std::ldexp(fraction, static_cast<int>(mixed % 16) - 8);
  }
  static float Scale(size_t repetition) { return static_cast<float>(1 << repetition % 3); }

  int ranks_;
  std::vector<float> mine_;
  std::vector<float> sum_;  // the left fold in rank order of what travels
  std::vector<float> exact_sum_;
};

// One way to move or add, and what it took.
struct Contestant {
  std::string transport;
  std::string algorithm;
  // One checked repetition over values of a size; returns its nanoseconds on this rank.
  std::function<StatusOr<int64_t>(size_t repetition, const Values&, std::span<float>)> run;
  std::string dtype = "float32";  // of what travels
  // For float32 values of a size, whether there is this way, and whether it is the one taken.
  std::function<bool(size_t bytes)> possible = [](size_t) { return true; };
  std::function<bool(size_t bytes)> chosen = [](size_t) { return true; };
  std::vector<std::vector<float>> samples_us = {};  // per size, of all rounds
};

std::string TypeName(WireFormat wire) {
  return wire == WireFormat::kF32 ? "float32" : NameOf(wire);
}

std::string InSlot(SumAlgorithm algorithm) { return NameOf(algorithm) + std::string(", in slot"); }

// --- the contestants ---

// What a group of these settings does with float32 values of `bytes` in its slot.
SumPlan PlanOf(const Group& group, size_t direct_bytes, size_t bytes, WireFormat wire) {
  return ChooseSum(group.traits(), group.size(), direct_bytes, bytes / sizeof(float), wire);
}

// The limit with which all sums are made that way, as far as they can be.
size_t Forcing(SumAlgorithm algorithm) { return algorithm == SumAlgorithm::kDirect ? SIZE_MAX : 0; }

// Whether a group with this limit makes a sum that way; of ordinary memory, its exchanges.
struct Makes {
  SumAlgorithm algorithm;
  std::shared_ptr<Group> group;
  size_t direct_bytes;
  WireFormat wire;
  bool in_slot;

  bool operator()(size_t bytes) const {
    const size_t longest = PlanOf(*group, direct_bytes, bytes, wire).longest_bytes;
    const size_t exchange = in_slot ? bytes : std::min(bytes, longest);
    return PlanOf(*group, direct_bytes, exchange, wire).algorithm == algorithm;
  }
};

// To sums in ordinary memory, from values there or, as a layer does it, whose products write them
// there, in the slot.
Contestant SumOf(const std::shared_ptr<Group>& group, const std::string& transport, WireFormat wire,
                 SumAlgorithm algorithm, bool in_slot) {
  const auto run = [=](size_t repetition, const Values& values,
                       std::span<float> data) -> StatusOr<int64_t> {
    group->set_longest_direct_bytes(Forcing(algorithm));
    std::span<float> input = data;
    if (in_slot) {
      LOCKSTEP_ASSIGN_OR_RETURN(const std::span<std::byte> slot, group->Begin(data.size_bytes()));
      input = {reinterpret_cast<float*>(slot.data()), data.size()};
    }
    values.Fill(repetition, input);
    const int64_t start_ns = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(in_slot ? SumSlots(*group, data, wire)
                                     : AllReduceSum(*group, data, wire));
    const int64_t took_ns = NowNs() - start_ns;
    LOCKSTEP_RETURN_IF_ERROR(values.Check(repetition, data));
    return took_ns;
  };
  return {transport,
          in_slot ? InSlot(algorithm) : NameOf(algorithm),
          run,
          TypeName(wire),
          Makes{algorithm, group, Forcing(algorithm), wire, in_slot},
          Makes{algorithm, group, group->longest_direct_bytes(), wire, in_slot}};
}

// Along a tree, as `--sum-order any` allows it.
Contestant SumInAnyOrderOf(const std::shared_ptr<Group>& group, const std::string& transport,
                           bool chosen) {
  const auto run = [=](size_t repetition, const Values& values,
                       std::span<float> data) -> StatusOr<int64_t> {
    group->set_sum_order(SumOrder::kAny);
    values.Fill(repetition, data);
    const int64_t start_ns = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(group->SumInAnyOrder(data));
    const int64_t took_ns = NowNs() - start_ns;
    group->set_sum_order(SumOrder::kRank);
    LOCKSTEP_RETURN_IF_ERROR(values.CheckInAnyOrder(repetition, data, kSlackInAnyOrder));
    return took_ns;
  };
  return {.transport = transport, .algorithm = "any order", .run = run, .chosen = [chosen](size_t) {
            return chosen;
          }};
}

Contestant OpenMpi() {
  const auto run = [](size_t repetition, const Values& values,
                      std::span<float> data) -> StatusOr<int64_t> {
    values.Fill(repetition, data);
    const int64_t start_ns = NowNs();
    LOCKSTEP_RETURN_IF_ERROR(MpiAllReduceSum(data));
    const int64_t took_ns = NowNs() - start_ns;
    LOCKSTEP_RETURN_IF_ERROR(values.CheckInAnyOrder(repetition, data, kSlackInAnyOrder));
    return took_ns;
  };
  return {"mpi", "MPI_Allreduce", run};
}

// Messages between ranks 0 and 1 on bare links, as long as a rank's values on the wire; the others
// look on.
StatusOr<Contestant> BarePingPong(Session& session, const std::string& transport, WireFormat wire) {
  LOCKSTEP_ASSIGN_OR_RETURN(Mesh opened, session.membership().OpenMesh(transport, 0));
  const auto mesh = std::make_shared<Mesh>(std::move(opened));
  if (session.rank() > 1) {
    return Contestant{transport, "ping-pong",
                      [mesh](size_t, const Values&, std::span<float>) { return int64_t{0}; }};
  }
  const int peer = 1 - session.rank();
  const auto game = std::make_shared<PingPong>(*mesh->links[peer], session, peer);
  const auto run = [mesh, game, wire, asks = session.rank() == 0](
                       size_t repetition, const Values& values,
                       std::span<float> data) -> StatusOr<int64_t> {
    const size_t bytes = WireBytes(wire, data.size());
    if (!asks) {
      LOCKSTEP_RETURN_IF_ERROR(game->Answer(bytes));
      return int64_t{0};
    }
    values.Fill(repetition, data);
    return game->Ask(std::as_bytes(data).first(bytes));
  };
  return Contestant{transport, "ping-pong", run, TypeName(wire)};
}

// Slots are as long as the longest message, as those of a step are.
StatusOr<std::vector<Contestant>> MakeContestants(Session& session,
                                                  const std::vector<std::string>& transports,
                                                  size_t longest_bytes, WireFormat wire) {
  const size_t slot_bytes = (std::max(longest_bytes, size_t{1} << 20) + 63) / 64 * 64;
  std::vector<Contestant> all;
  for (const std::string& transport : transports) {
    if (transport != "mpi") {
      LOCKSTEP_ASSIGN_OR_RETURN(Contestant bare, BarePingPong(session, transport, wire));
      all.push_back(std::move(bare));
    }
    LOCKSTEP_ASSIGN_OR_RETURN(const std::shared_ptr<Group> group,
                              session.membership().OpenGroup(transport, slot_bytes));
    group->set_longest_direct_bytes(session.group().longest_direct_bytes());
    for (const SumAlgorithm algorithm : {SumAlgorithm::kDirect, SumAlgorithm::kTwoStep}) {
      for (const bool in_slot : {false, true})
        all.push_back(SumOf(group, transport, wire, algorithm, in_slot));
    }
    if (transport == "mpi") {
      all.push_back(OpenMpi());
    } else if (wire == WireFormat::kF32) {
      const bool chosen = session.options().sum_order == "any";
      all.push_back(SumInAnyOrderOf(group, transport, chosen));
    }
  }
  return all;
}

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
    } else if (transport != "mpi" && bare_us > 0) {
      std::printf("  %.2f x\n", p50_us / bare_us);
    } else {
      std::printf("\n");
    }
  }
}

// --- the choice ---

// Up to which size one step is the better way over a transport, by the sums of slots, which is what
// layers make.
size_t BestChoice(const std::vector<int64_t>& sizes, const std::vector<Contestant>& contestants,
                  const std::string& transport, WireFormat wire) {
  const auto find = [&](SumAlgorithm algorithm) -> const Contestant& {
    return *std::find_if(contestants.begin(), contestants.end(), [&](const Contestant& item) {
      return item.transport == transport && item.algorithm == InSlot(algorithm);
    });
  };
  const Contestant& direct = find(SumAlgorithm::kDirect);
  const Contestant& two_step = find(SumAlgorithm::kTwoStep);
  std::vector<SumTimes> measured;
  for (size_t s = 0; s < sizes.size(); ++s) {
    if (two_step.samples_us[s].empty()) continue;
    measured.push_back({WireBytes(wire, static_cast<size_t>(sizes[s]) / sizeof(float)),
                        PercentileUs(direct.samples_us[s], 50),
                        PercentileUs(two_step.samples_us[s], 50)});
  }
  return BestDirectBytes(measured);
}

int64_t AsOption(size_t direct_bytes) {
  const auto highest = static_cast<size_t>(FindOption("direct-sum-bytes")->highest);
  return static_cast<int64_t>(std::min(direct_bytes, highest));
}

// What the measurement says, for the user who reads the table.
void PrintChoice(const std::string& transport, size_t best, size_t now) {
  const auto limit = [](size_t bytes) -> std::string {
    if (bytes == 0) return "never";
    const int64_t option = AsOption(bytes);
    if (option == AsOption(SIZE_MAX)) return "always";
    return absl::StrFormat("up to %d bytes on the wire", option);
  };
  std::printf("%s: one step is best %s (--direct-sum-bytes %lld), now it is taken %s\n",
              transport.c_str(), limit(best).c_str(), static_cast<long long>(AsOption(best)),
              limit(now).c_str());
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
      PrintChoice(transport, BestChoice(sizes, contestants, transport, wire),
                  session.group().longest_direct_bytes());
    }
  }
  if (!options.record) return OkStatus();
  const int64_t best = AsOption(BestChoice(sizes, contestants, options.collective, wire));
  LOCKSTEP_RETURN_IF_ERROR(RecordDirectSumBytes(options.config, best));
  log::Info("%s: direct-sum-bytes: %d", options.config, best);
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
