// `lockstep bench modes`: one model on the same nodes in every way of dividing it, by turns. Each
// turn is a `lockstep bench steps` of its own, started here or, where a cluster YAML lists other
// machines, over ssh on each of them, so that ranks are what a user would start; steps of the model
// are measured, without plans, sampling and text.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "absl/strings/str_join.h"
#include "collectives/bootstrap.h"
#include "launcher/cluster_yaml.h"
#include "launcher/commands/bench.h"
#include "launcher/commands/modes_report.h"
#include "launcher/process.h"
#include "launcher/remote.h"
#include "launcher/world.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "runtime/base/os.h"
#include "runtime/kernels/device_name.h"
#include "transport/fabric.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

constexpr int64_t kMostRanks = 64;
// Of one turn. What hangs within it ends itself, by its own deadlines.
constexpr int64_t kLongestTurnMs = 6 * 3'600'000;

struct Mode {
  std::string kind;  // single, pipeline, tensor
  std::string link;  // empty for single
  std::string Name() const { return link.empty() ? kind : kind + "/" + link; }
};

StatusOr<std::vector<Mode>> ModesOf(const Options& options) {
  const char* transport = FindTransport(options.collective);
  const std::string usual =
      absl::StrFormat("single,pipeline/grpc,pipeline/%s,tensor/%s",
                      transport == nullptr ? "tcp" : transport, options.collective);
  std::vector<Mode> modes;
  for (const std::string& name : SplitAtCommas(options.modes.empty() ? usual : options.modes)) {
    const size_t slash = std::min(name.find('/'), name.size());
    const Mode mode{name.substr(0, slash), name.substr(std::min(slash + 1, name.size()))};
    const OptionSpec* links = mode.kind == "pipeline" ? FindOption("stage-link")
                              : mode.kind == "tensor" ? FindOption("collective")
                                                      : nullptr;
    const auto is_link = [&](const char* link) { return mode.link == link; };
    const bool known = links == nullptr
                           ? name == "single"
                           : std::any_of(links->allowed.begin(), links->allowed.end(), is_link);
    if (!known) {
      return UsageError(
          "--modes: '%s' is none of single, pipeline/grpc, pipeline/tcp (shm, rdma) and tensor/tcp "
          "(shm, rdma, mpi, nccl); several are parted by commas",
          name);
    }
    modes.push_back(mode);
  }
  return modes;
}

// What every turn is given as this command was, where it is not as usual.
constexpr const char* kHandedOn[] = {"model",
                                     "kernels",
                                     "exact",
                                     "kv-cache-dtype",
                                     "rdma-mode",
                                     "start-timeout-ms",
                                     "peer-timeout-ms",
                                     "exchange-timeout-ms",
                                     "verify-exchanges",
                                     "prefill-chunk",
                                     "context",
                                     "batch",
                                     "tokens",
                                     "prompt-tokens",
                                     "added-latency-us"};
constexpr const char* kOfSeveral[] = {"interface", "secret-file", "shares", "mixed-kernels"};
constexpr const char* kOfPipelines[] = {"stages"};
constexpr const char* kOfSums[] = {"sum-order", "gather-sum-bytes", "direct-sum-bytes",
                                   "overlap-rows"};

std::string TextOf(const OptionField& field, const Options& options) {
  if (const auto* text = std::get_if<std::string Options::*>(&field)) return options.**text;
  if (const auto* number = std::get_if<int64_t Options::*>(&field))
    return std::to_string(options.**number);
  if (const auto* flag = std::get_if<bool Options::*>(&field))
    return options.**flag ? "true" : "false";
  const auto& list = options.*std::get<std::vector<double> Options::*>(field);
  return absl::StrJoin(list, ",", [](std::string* out, double value) {
    absl::StrAppendFormat(out, "%.17g", value);
  });
}

void HandOn(const Options& options, std::span<const char* const> names,
            std::vector<std::string>* arguments) {
  const Options usual;
  for (const char* name : names) {
    const OptionSpec* spec = FindOption(name);
    const std::string text = TextOf(spec->field, options);
    if (text != TextOf(spec->field, usual))
      arguments->push_back(absl::StrFormat("--%s=%s", name, text));
  }
}

// Where the turns run.
class Nodes {
 public:
  static StatusOr<Nodes> Open(const Options& options) {
    Nodes nodes(options);
    if (!options.config.empty()) {
      LOCKSTEP_ASSIGN_OR_RETURN(const ClusterFile file, ReadClusterYaml(options.config));
      nodes.nodes_ = file.nodes;
    }
    const auto local = [](const ClusterNode& node) { return IsLoopback(node.host); };
    nodes.here_ = std::all_of(nodes.nodes_.begin(), nodes.nodes_.end(), local);
    for (const ClusterNode& node : nodes.nodes_) {
      if (nodes.here_ && (node.threads > 0 || !node.interface.empty() || node.device.has_value())) {
        return UsageError(
            "%s: %s has settings of its own, which ranks on one machine do not get here; leave "
            "threads, interface and device out and give --threads and --device",
            options.config, node.name);
      }
    }
    LOCKSTEP_RETURN_IF_ERROR(nodes.Count());
    if (nodes.here_) return nodes;
    const Options& o = options;
    LOCKSTEP_RETURN_IF_ERROR(CheckWholePath(o.config, "model", o.model));
    LOCKSTEP_RETURN_IF_ERROR(CheckWholePath(o.config, "secret-file", o.secret_file));
    LOCKSTEP_RETURN_IF_ERROR(CheckWholePath("bench modes", "--node-program", o.node_program));
    return nodes;
  }

  const std::vector<int64_t>& counts() const { return counts_; }
  std::string Describe() const {
    if (here_) return "this machine";
    return absl::StrJoin(nodes_, ", ",
                         [](std::string* out, const ClusterNode& node) { *out += node.name; });
  }

  // One mode once.
  StatusOr<ModeReport> Turn(const Mode& mode, int ranks) const {
    const bool apart = !here_ && mode.kind != "single";
    std::vector<NodeCommand> commands;
    for (int rank = 0; rank < (apart ? ranks : 1); ++rank) {
      LOCKSTEP_ASSIGN_OR_RETURN(std::vector<std::string> arguments, ArgumentsOf(mode, rank, ranks));
      if (apart) AddPlace(rank, &arguments);
      std::string line = "exec " + ShellWord(Program(rank)) + " bench steps";
      for (const std::string& argument : arguments) line += " " + ShellWord(argument);
      commands.push_back({HostOf(rank), line, ""});
    }
    const auto answers = RunOnNodes(options_.ssh, commands, kLongestTurnMs);
    // All of them: rank 0 may only know that another did not come.
    std::vector<std::string> failed;
    for (int rank = 0; rank < std::ssize(answers); ++rank) {
      const Status ended = OutputOf(answers[rank], Asked(rank)).status();
      if (!ended.ok()) failed.push_back(MessageOf(ended));
    }
    if (!failed.empty()) return UsageError("%s", absl::StrJoin(failed, "; "));
    return ParseModeReport(answers.front()->out);
  }

 private:
  explicit Nodes(const Options& options) : options_(options) {}

  Status Count() {
    if (!options_.rank_counts.empty()) {
      if (!nodes_.empty())
        return UsageError("--rank-counts is for ranks on this machine; %s lists its nodes",
                          options_.config);
      LOCKSTEP_ASSIGN_OR_RETURN(counts_,
                                ParseCounts(options_.rank_counts, "--rank-counts", kMostRanks, 2));
      if (counts_.size() > 1 && options_.device.find(',') != std::string::npos) {
        return UsageError(
            "--device %s: a list is for one number of ranks; give --rank-counts one number, or one "
            "device for all",
            options_.device);
      }
      return OkStatus();
    }
    counts_ = {nodes_.empty() ? options_.ranks : std::ssize(nodes_)};
    if (counts_.front() >= 2) return OkStatus();
    return UsageError(
        "how many nodes shall be compared with one? give --ranks 2 for ranks on this machine, or "
        "--config with a cluster YAML");
  }

  StatusOr<std::vector<std::string>> ArgumentsOf(const Mode& mode, int rank, int ranks) const {
    std::vector<std::string> arguments = {"--json", "--repeat=1", "--log-level=error",
                                          absl::StrFormat("--ranks=%d", ranks)};
    HandOn(options_, kHandedOn, &arguments);
    if (const int64_t threads = Threads(rank); threads > 0)
      arguments.push_back(absl::StrFormat("--threads=%d", threads));
    LOCKSTEP_ASSIGN_OR_RETURN(const std::string device, Devices(mode, rank, ranks));
    arguments.push_back("--device=" + device);
    if (mode.kind == "single") return arguments;
    HandOn(options_, kOfSeveral, &arguments);
    arguments.push_back("--mode=" + mode.kind);
    if (mode.kind == "pipeline") {
      arguments.push_back("--stage-link=" + mode.link);
      HandOn(options_, kOfPipelines, &arguments);
      // Stages of several ranks add as tensor mode does.
      if (options_.stages > 0 && options_.stages < ranks) {
        arguments.push_back("--collective=" + options_.collective);
        HandOn(options_, kOfSums, &arguments);
      }
    } else {
      arguments.push_back("--collective=" + mode.link);
      HandOn(options_, kOfSums, &arguments);
    }
    return arguments;
  }

  // Of a rank among those on other machines.
  void AddPlace(int rank, std::vector<std::string>* arguments) const {
    const ClusterNode& node = nodes_[static_cast<size_t>(rank)];
    const int port = nodes_[0].port != 0 ? nodes_[0].port : kDefaultRendezvousPort;
    const std::string rendezvous =
        options_.rendezvous.empty() ? Endpoint{nodes_[0].host, port}.Text() : options_.rendezvous;
    arguments->push_back(absl::StrFormat("--rank=%d", rank));
    arguments->push_back("--rendezvous=" + rendezvous);
    if (!node.interface.empty()) arguments->push_back("--interface=" + node.interface);
  }

  // The --device of one command: that of its rank, or those of all that it starts.
  StatusOr<std::string> Devices(const Mode& mode, int rank, int ranks) const {
    if (here_ && mode.kind != "single" && ranks == counts_.back()) return options_.device;
    if (!here_ && nodes_[static_cast<size_t>(rank)].device.has_value())
      return nodes_[static_cast<size_t>(rank)].device->Text();
    std::vector<std::string> names;
    for (int one = rank; one < (here_ ? ranks : rank + 1); ++one) {
      LOCKSTEP_ASSIGN_OR_RETURN(
          const kernels::DeviceName name,
          kernels::DeviceOfRank(options_.device, one, static_cast<int>(counts_.back()),
                                "--device"));
      names.push_back(name.Text());
      if (mode.kind == "single") break;
    }
    return absl::StrJoin(names, ",");
  }

  // Ranks on one machine stand for nodes: each has as many cores in every mode.
  int64_t Threads(int rank) const {
    if (!here_ && nodes_[static_cast<size_t>(rank)].threads > 0)
      return nodes_[static_cast<size_t>(rank)].threads;
    if (options_.threads > 0 || !here_) return options_.threads;
    const int64_t most = *std::max_element(counts_.begin(), counts_.end());
    return std::max<int64_t>(std::ssize(os::AllowedCpus()) / most, 1);
  }

  std::string HostOf(int rank) const {
    if (here_) return "";
    const std::string& host = nodes_[static_cast<size_t>(rank)].host;
    return IsOwnHost(host) ? "" : host;
  }
  std::string Program(int rank) const {
    return options_.node_program.empty() || HostOf(rank).empty() ? ExecutablePath()
                                                                 : options_.node_program;
  }
  AskedNode Asked(int rank) const {
    const std::string name =
        here_ ? "this machine"
              : absl::StrFormat("rank %d (%s)", rank, nodes_[static_cast<size_t>(rank)].name);
    return {name, HostOf(rank), options_.ssh, Program(rank)};
  }

  const Options& options_;
  std::vector<ClusterNode> nodes_;
  std::vector<int64_t> counts_;
  bool here_ = true;  // all ranks are of this machine
};

Status CheckOptions(const Options& options) {
  const Options usual;
  if (options.model.empty())
    return UsageError("no model given; give --model with a directory or a .gguf file");
  if (options.mode != usual.mode || options.stage_link != usual.stage_link)
    return UsageError("bench modes runs several modes; choose them with --modes");
  if (options.wire != usual.wire) {
    return UsageError(
        "--wire %s: modes are compared where they compute the same; leave it out, or measure it by "
        "itself with `lockstep bench decode`",
        options.wire);
  }
  if (options.rank >= 0)
    return UsageError("bench modes is started once and starts all ranks; leave --rank out");
  if (int rank, size, local_rank, local_size; DetectMpirun(&rank, &size, &local_rank, &local_size))
    return UsageError("bench modes starts ranks itself; start it once, without mpirun");
  return ParseLatencies(options).status();
}

void TellTurn(int64_t round, const ModeRuns& runs) {
  if (!runs.refused.empty()) {
    log::Warning("round %d, %s: %s", round + 1, runs.Name(), runs.refused);
    return;
  }
  const ModeTest& first = runs.rounds.back().tests.front();
  log::Info("round %d, %s: %s %.2f tokens/s", round + 1, runs.Name(), first.test,
            first.tokens_per_s.front());
}

void RunRounds(const Options& options, const Nodes& nodes, const std::vector<Mode>& modes,
               ModesReport* report) {
  std::vector<const Mode*> mode_of;
  for (const Mode& mode : modes) {
    const std::vector<int64_t> one = {1};
    for (const int64_t ranks : mode.kind == "single" ? one : nodes.counts()) {
      report->modes.push_back({mode.Name(), static_cast<int>(ranks), {}, ""});
      mode_of.push_back(&mode);
    }
  }
  for (int64_t round = 0; round < options.repeat; ++round) {
    for (size_t i = 0; i < report->modes.size(); ++i) {
      ModeRuns& runs = report->modes[i];
      if (!runs.refused.empty()) continue;
      StatusOr<ModeReport> turn = nodes.Turn(*mode_of[i], runs.ranks);
      if (turn.ok()) {
        runs.rounds.push_back(std::move(*turn));
      } else {
        runs.refused = MessageOf(turn.status());
        runs.rounds.clear();  // those were not beside all of the others'
      }
      TellTurn(round, runs);
    }
  }
}

}  // namespace

Status BenchModes(const Options& options) {
  LOCKSTEP_RETURN_IF_ERROR(CheckOptions(options));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<Mode> modes, ModesOf(options));
  LOCKSTEP_ASSIGN_OR_RETURN(const Nodes nodes, Nodes::Open(options));
  ModesReport report;
  std::filesystem::path path(options.model);
  if (!path.has_filename()) path = path.parent_path();  // "GLM-4.7/"
  report.model = path.filename().string();
  report.nodes = nodes.Describe();
  report.rounds = options.repeat;
  RunRounds(options, nodes, modes, &report);
  const StatusOr<TokenComparison> compared = CompareTokens(report.modes);
  const TokenComparison tokens = compared.value_or(TokenComparison{});
  const nlohmann::ordered_json all = ModesToJson(report, tokens);
  if (options.json) {
    std::printf("%s\n", all.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    PrintModes(all);
  }
  if (!options.chart.empty()) {
    const std::string svg = DrawModes(report);
    LOCKSTEP_RETURN_IF_ERROR(WriteFileAtomically(options.chart, std::as_bytes(std::span(svg))));
  }
  LOCKSTEP_RETURN_IF_ERROR(compared.status());
  return VerdictOf(report, tokens);
}

}  // namespace lockstep
