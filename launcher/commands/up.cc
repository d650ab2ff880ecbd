// `lockstep up`, `down` and `status`: the ranks of a cluster YAML on its nodes. Each asks every
// node, over ssh, to run the same command for its own rank (--rank N), which is all that happens
// there: node_process.h. The file that describes the cluster travels with `up`.
#include <algorithm>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "launcher/cluster_yaml.h"
#include "launcher/commands/commands.h"
#include "launcher/commands/generation.h"
#include "launcher/node_answer.h"
#include "launcher/node_process.h"
#include "launcher/process.h"
#include "launcher/remote.h"
#include "launcher/world.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/log.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kAnswerMs = 30'000;  // that a node has, beyond what it is asked to wait for
// From one question to the next while ranks start: at first soon, then seldom.
constexpr int64_t kFirstPollMs = 500;
constexpr int64_t kLongestPollMs = 5'000;
// Nodes that cannot be asked for this long while they start count as lost.
constexpr int64_t kUnreachableMs = 60'000;
// A model that takes longer to load is looked after by `lockstep status`.
constexpr int64_t kLongestStartMs = 3'600'000;
constexpr int64_t kBeforeKillMs = 5'000;

constexpr const char* kNotAsked = "not asked: TLS";
constexpr const char* kFileName = "cluster.yaml";
// What `up` brings to a node; the name of a file is that until a rank starts with it.
constexpr const char* kFreshName = "new-";

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// --- one rank, on its node ---

std::string Directory(const Options& options) {
  const std::filesystem::path folder = std::filesystem::path(options.config).parent_path();
  return folder.empty() ? "." : folder.string();
}

RankFacts FactsOf(const Options& options, const RankProcess& process) {
  RankFacts facts;
  facts.state = process.running ? "running" : process.pid != 0 ? "ended" : "absent";
  facts.pid = process.pid;
  facts.started_at = process.started_at;
  if (process.ready) {
    const bool anywhere = options.host == "0.0.0.0" || options.host == "::";
    const std::string host = anywhere ? "127.0.0.1" : options.host;
    const bool tls = !options.tls_cert.empty();
    facts.serves = absl::StrFormat("%s://%s", tls ? "https" : "http",
                                   Endpoint{options.host, process.port}.Text());
    facts.health = tls ? kNotAsked : AskHealth(host, process.port);
  }
  if (!process.running && process.pid != 0)
    facts.log = LastWordsOfRank(Directory(options), static_cast<int>(options.rank));
  return facts;
}

Status Tell(const RankFacts& facts) {
  std::printf("%s\n", Dump(JsonOf(facts)).c_str());
  return OkStatus();
}

// Two may try to start a cluster at the same time: whose rank it is has its file there, too.
Status StartHere(const Options& options) {
  const int rank = static_cast<int>(options.rank);
  const std::filesystem::path given = options.config;
  const bool fresh = given.filename().string().starts_with(kFreshName);
  const std::string file = fresh ? Directory(options) + "/" + kFileName : options.config;
  const auto take_over = [&] {
    std::error_code error;
    if (fresh) std::filesystem::rename(given, file, error);
    return error ? UsageError("cannot write %s: %s", file, error.message()) : OkStatus();
  };
  LOCKSTEP_ASSIGN_OR_RETURN(const RankProcess process,
                            StartRank(Directory(options), rank,
                                      {ExecutablePath(), rank == 0 ? "serve" : "worker", "--config",
                                       file, "--rank", std::to_string(rank)},
                                      take_over));
  return Tell(FactsOf(options, process));
}

Status EndHere(const Options& options) {
  const int64_t patience_ms = options.drain_timeout_ms + kEndAtOnceMs + kBeforeKillMs;
  LOCKSTEP_ASSIGN_OR_RETURN(
      const RankEnd end, EndRank(Directory(options), static_cast<int>(options.rank), patience_ms));
  switch (end) {
    case RankEnd::kWasNotRunning:
      return Tell({.state = "was not running"});
    case RankEnd::kEnded:
      return Tell({.state = "ended"});
    case RankEnd::kKilled:
      break;
  }
  return Tell({.state = absl::StrFormat("killed: it had not ended %d s after SIGTERM",
                                        patience_ms / 1000)});
}

Status ShowHere(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const RankProcess process,
                            FindRank(Directory(options), static_cast<int>(options.rank)));
  return Tell(FactsOf(options, process));
}

// --- all of them, from anywhere ---

// What one node said of its rank, or why it said nothing.
struct RankAnswer {
  Status status;  // an error names the rank and its node
  RankFacts facts;
};

class Cluster {
 public:
  static StatusOr<Cluster> Open(const Options& options) {
    Cluster cluster(options);
    if (options.config.empty())
      return UsageError("which cluster? give its YAML: lockstep up configs/FILE.yaml");
    LOCKSTEP_ASSIGN_OR_RETURN(cluster.text_, ReadTextFile(options.config, uint64_t{1} << 20));
    LOCKSTEP_ASSIGN_OR_RETURN(const ClusterFile file,
                              ParseClusterYaml(cluster.text_, options.config));
    cluster.nodes_ = file.nodes;
    if (file.nodes.empty())
      return UsageError("%s lists no nodes, so there is nobody to ask", options.config);
    if (options.collective == "mpi") {
      return UsageError("%s: collective mpi joins its ranks through mpirun, which starts them",
                        options.config);
    }
    for (const ClusterNode& node : file.nodes) {
      cluster.hosts_.push_back(IsOwnHost(node.host) ? "" : node.host);
      const Status usable = CommandLineOf(options.ssh, {cluster.hosts_.back(), "", ""}).status();
      if (!usable.ok()) return Annotate(usable, options.config);
    }
    LOCKSTEP_RETURN_IF_ERROR(cluster.CheckPaths());
    return cluster;
  }

  size_t size() const { return nodes_.size(); }
  const std::string& node(size_t rank) const { return nodes_[rank].name; }
  std::string Name(size_t rank) const { return absl::StrFormat("rank %d (%s)", rank, node(rank)); }

  // `up` on every node, with the file under a name of its own.
  std::vector<RankAnswer> Start() const {
    return Ask(kAnswerMs, [&](size_t rank) {
      const std::string file = absl::StrFormat("%s/%s%d-$$.yaml", Directory(), kFreshName, rank);
      return NodeCommand{"",
                         "umask 077; mkdir -p " + Directory() + " && cat >" + file + " && { " +
                             Line(rank, "up", file) + "; code=$?; rm -f " + file +
                             "; exit $code; }",
                         text_};
    });
  }
  // `command` where there is a file from `up`.
  std::vector<RankAnswer> AskAll(const char* command, int64_t timeout_ms) const {
    return Ask(timeout_ms, [&](size_t rank) {
      const std::string file = Directory() + "/" + kFileName;
      return NodeCommand{
          "", "[ -e " + file + " ] || " + Say("absent") + "exec " + Line(rank, command, file), ""};
    });
  }
  // `down` where `started` says that a rank was started, and its process is still that one.
  void EndThose(const std::vector<RankAnswer>& started, int64_t timeout_ms) const {
    (void)Ask(timeout_ms, [&](size_t rank) {
      const RankAnswer& answer = started[rank];
      if (!answer.status.ok() || answer.facts.pid == 0) return NodeCommand{"", "true", ""};
      return NodeCommand{"",
                         absl::StrFormat("read -r pid at <%s/rank-%d.pid && [ \"$pid\" = %d ] || ",
                                         Directory(), rank, answer.facts.pid) +
                             Say("another") + "exec " +
                             Line(rank, "down", Directory() + "/" + kFileName),
                         ""};
    });
  }

 private:
  explicit Cluster(const Options& options) : options_(options) {}

  // Files that a rank opens: other machines would look for them in another directory.
  Status CheckPaths() const {
    const Options& o = options_;
    for (const auto& [flag, path] : {std::pair("--node-program", o.node_program),
                                     std::pair("--node-directory", o.node_directory)}) {
      if (!path.empty() && path.front() != '/')
        return UsageError("%s %s: give the whole path", flag, path);
    }
    if (std::all_of(hosts_.begin(), hosts_.end(), [](const auto& host) { return host.empty(); }))
      return OkStatus();
    for (const auto& [key, path] :
         {std::pair("model", o.model), std::pair("secret-file", o.secret_file),
          std::pair("api-key-file", o.api_key_file), std::pair("tls-cert", o.tls_cert),
          std::pair("tls-key", o.tls_key)}) {
      LOCKSTEP_RETURN_IF_ERROR(CheckWholePath(o.config, key, path));
    }
    return OkStatus();
  }

  // As a word of the shell there.
  std::string Directory() const {
    if (!options_.node_directory.empty()) return ShellWord(options_.node_directory);
    return "\"$HOME\"/.lockstep/" +
           ShellWord(std::filesystem::path(options_.config).stem().string());
  }
  std::string Program(size_t rank) const {
    return options_.node_program.empty() || hosts_[rank].empty() ? ExecutablePath()
                                                                 : options_.node_program;
  }

  // For a shell: lockstep with a command for one rank; and an end with an answer.
  std::string Line(size_t rank, const char* command, const std::string& file) const {
    return absl::StrFormat("%s %s --config %s --rank %d", ShellWord(Program(rank)), command, file,
                           rank);
  }
  static std::string Say(const char* state) {
    return absl::StrFormat("{ echo '{\"state\":\"%s\"}'; exit 0; }; ", state);
  }

  // `command_for` a rank, without its host.
  template <typename CommandFor>
  std::vector<RankAnswer> Ask(int64_t timeout_ms, const CommandFor& command_for) const {
    std::vector<NodeCommand> commands;
    for (size_t rank = 0; rank < size(); ++rank) {
      commands.push_back(command_for(rank));
      commands.back().host = hosts_[rank];
    }
    const auto answers = RunOnNodes(options_.ssh, commands, timeout_ms);
    std::vector<RankAnswer> all;
    for (size_t rank = 0; rank < size(); ++rank) all.push_back(Understand(answers[rank], rank));
    return all;
  }

  RankAnswer Understand(const StatusOr<NodeAnswer>& answer, size_t rank) const {
    const StatusOr<std::string> output =
        OutputOf(answer, {Name(rank), hosts_[rank], options_.ssh, Program(rank)});
    if (!output.ok()) return {output.status(), {}};
    const StatusOr<RankFacts> facts = ParseRankFacts(*output);
    if (facts.ok()) return {OkStatus(), *facts};
    return {UsageError("%s: its answer cannot be read (%s); is %s there another version?",
                       Name(rank), MessageOf(facts.status()), Program(rank)),
            {}};
  }

  const Options options_;
  std::string text_;
  std::vector<ClusterNode> nodes_;
  std::vector<std::string> hosts_;  // for ssh; empty: this machine
};

Status FirstError(const std::vector<RankAnswer>& answers) {
  for (const RankAnswer& answer : answers) LOCKSTEP_RETURN_IF_ERROR(answer.status);
  return OkStatus();
}

// An error that says how the first rank that does not run ended, if there is one. Ranks that could
// not be asked are none.
Status NoneEnded(const Cluster& cluster, const std::vector<RankAnswer>& answers) {
  for (size_t rank = 0; rank < answers.size(); ++rank) {
    const auto& [status, facts] = answers[rank];
    if (!status.ok() || facts.state == "running") continue;
    return PeerLostError("%s is not running%s%s", cluster.Name(rank),
                         facts.log.empty() ? "" : "; the end of its log:\n", facts.log);
  }
  return OkStatus();
}

// Rank 0 answers requests; where TLS keeps it from being asked, it said once that it does.
Status Serves(const Cluster& cluster, const RankFacts& first) {
  if (first.serves.empty()) return PeerLostError("%s does not serve yet", cluster.Name(0));
  if (first.health == "ready" || first.health == kNotAsked) return OkStatus();
  return PeerLostError("%s, %s: %s", cluster.Name(0), first.serves, first.health);
}

// What a rank that ended said itself is worth more than what the others say of its end.
Status WithTheCause(const Cluster& cluster, const std::vector<RankAnswer>& answers,
                    const Status& otherwise) {
  for (size_t rank = 0; rank < answers.size(); ++rank) {
    const std::string& log = answers[rank].facts.log;
    if (log.empty() || log.find("lockstep: rank ") != std::string::npos) continue;
    return PeerLostError("%s is not running; the end of its log:\n%s", cluster.Name(rank), log);
  }
  return otherwise;
}

void Show(const Options& options, const Cluster& cluster, const std::vector<RankAnswer>& answers) {
  Json all = Json::array();
  if (!options.json) std::printf("%-5s %-16s %-10s %8s  %s\n", "rank", "node", "state", "pid", "");
  for (size_t rank = 0; rank < answers.size(); ++rank) {
    const RankAnswer& answer = answers[rank];
    RankFacts facts = answer.facts;
    if (!answer.status.ok()) facts.state = "unknown";
    Json line = {{"rank", rank}, {"node", cluster.node(rank)}};
    line.update(JsonOf(facts));
    if (!answer.status.ok()) line["error"] = MessageOf(answer.status);
    all.push_back(line);
    if (options.json) continue;
    std::string more;
    if (facts.state == "running" && facts.started_at > 0) {
      char text[32] = {};
      const std::time_t at = facts.started_at;
      std::tm parts{};
      if (localtime_r(&at, &parts) != nullptr)
        (void)std::strftime(text, sizeof(text), "since %F %T", &parts);
      more = text;
    }
    if (!facts.serves.empty()) more += ", serves " + facts.serves + ": " + facts.health;
    if (!answer.status.ok()) more = MessageOf(answer.status);
    std::printf("%-5d %-16s %-10s %8s  %s\n", static_cast<int>(rank), cluster.node(rank).c_str(),
                facts.state.c_str(), facts.pid == 0 ? "-" : std::to_string(facts.pid).c_str(),
                more.c_str());
  }
  if (options.json) std::printf("%s\n", Dump(all).c_str());
}

int64_t EndMs(const Options& options) {
  return options.drain_timeout_ms + kEndAtOnceMs + 2 * kBeforeKillMs + kAnswerMs;
}

// Until rank 0 serves, or that takes too long. An error: a rank has ended, or cannot be asked any
// more.
StatusOr<std::vector<RankAnswer>> WaitUntilReady(const Cluster& cluster) {
  const Deadline deadline = Deadline::After(kLongestStartMs);
  Deadline unreachable = Deadline::After(kUnreachableMs);
  for (int64_t poll_ms = kFirstPollMs;; poll_ms = std::min(poll_ms * 3 / 2, kLongestPollMs)) {
    std::vector<RankAnswer> answers = cluster.AskAll("status", kAnswerMs);
    if (const Status running = NoneEnded(cluster, answers); !running.ok()) {
      // The others end a moment later, and one of them may know why.
      SleepMs(2 * kFirstPollMs);
      return WithTheCause(cluster, cluster.AskAll("status", kAnswerMs), running);
    }
    const Status reached = FirstError(answers);
    if (reached.ok()) unreachable = Deadline::After(kUnreachableMs);
    if (!reached.ok() && unreachable.Passed()) return reached;
    if (reached.ok() && !answers.front().facts.serves.empty()) return answers;
    if (deadline.Passed()) return answers;
    SleepMs(poll_ms);
  }
}

Status StartAll(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const Cluster cluster, Cluster::Open(options));
  const std::vector<RankAnswer> before = cluster.AskAll("status", kAnswerMs);
  LOCKSTEP_RETURN_IF_ERROR(FirstError(before));
  for (size_t rank = 0; rank < before.size(); ++rank) {
    if (before[rank].facts.state != "running") continue;
    return UsageError("%s runs already, as process %d; end it with `lockstep down %s`",
                      cluster.Name(rank), before[rank].facts.pid, options.config);
  }
  const std::vector<RankAnswer> started = cluster.Start();
  Status end = FirstError(started);
  if (end.ok()) {
    log::Info("%d ranks started; waiting until they serve", cluster.size());
    const StatusOr<std::vector<RankAnswer>> ready = WaitUntilReady(cluster);
    if (ready.ok()) Show(options, cluster, *ready);
    if (ready.ok() && !ready->front().facts.serves.empty()) return OkStatus();
    if (ready.ok()) {
      return PeerLostError(
          "still loading after an hour, and left so; `lockstep status %s` shows when it serves, "
          "`lockstep down %s` ends it",
          options.config, options.config);
    }
    end = ready.status();
  }
  // They would wait for those that are missing.
  log::Info("ending the ranks that were started");
  cluster.EndThose(started, EndMs(options));
  return end;
}

Status EndAll(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const Cluster cluster, Cluster::Open(options));
  const std::vector<RankAnswer> answers = cluster.AskAll("down", EndMs(options));
  Show(options, cluster, answers);
  return FirstError(answers);
}

Status ShowAll(const Options& options) {
  LOCKSTEP_ASSIGN_OR_RETURN(const Cluster cluster, Cluster::Open(options));
  const std::vector<RankAnswer> answers = cluster.AskAll("status", kAnswerMs);
  Show(options, cluster, answers);
  LOCKSTEP_RETURN_IF_ERROR(FirstError(answers));
  LOCKSTEP_RETURN_IF_ERROR(NoneEnded(cluster, answers));
  return Serves(cluster, answers.front().facts);
}

}  // namespace

Status UpCommand(const Options& options) {
  return options.rank >= 0 ? StartHere(options) : StartAll(options);
}
Status DownCommand(const Options& options) {
  return options.rank >= 0 ? EndHere(options) : EndAll(options);
}
Status StatusCommand(const Options& options) {
  return options.rank >= 0 ? ShowHere(options) : ShowAll(options);
}

}  // namespace lockstep
