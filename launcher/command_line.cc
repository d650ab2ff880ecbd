#include "launcher/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <utility>

#include "launcher/cluster_yaml.h"
#include "launcher/nearest.h"
#include "runtime/base/log_event.h"
#include "runtime/base/version.h"

namespace lockstep {
namespace {

enum Group : uint64_t {
  kModel = 1,
  kRanks = 2,
  kLimits = 4,
  kServing = 8,
  kPrompt = 16,
  kSampling = 32,
  kLogits = 64,
  kOutput = 128,
  kFiles = 256,
  kShard = 512,
  kCompute = 1 << 10,
  kArithmetic = 1 << 11,
  kProbe = 1 << 12,
  kListen = 1 << 13,
  kSecret = 1 << 14,
  kTokens = 1 << 15,
  kBench = 1 << 16,
  kLinks = 1 << 17,
  kTemplate = 1 << 18,
  kCut = 1 << 19,
  kJson = 1 << 20,
  kWire = 1 << 21,
  kLengths = 1 << 22,
  kPlan = 1 << 23,
  kChunk = 1 << 24,
  kPlace = 1 << 25,
  kNodes = 1 << 26,
  kBurn = 1 << 27,
  kSchedule = 1 << 28,
  kSeed = 1 << 29,
  kTrace = 1 << 30,
  kFleet = uint64_t{1} << 31,
  kContext = uint64_t{1} << 32,
  kKeys = uint64_t{1} << 33,
  kLoad = uint64_t{1} << 34,
  kDevice = uint64_t{1} << 35,
};

struct GroupSpec {
  Group group;
  std::string_view title;  // groups with the same one are one in the help
  std::vector<std::string_view> options;
};

const std::vector<GroupSpec>& Groups() {
  static const std::vector<GroupSpec> groups = {
      {kModel, "Model", {"model"}},
      {kCompute, "Model", {"kernels", "threads"}},
      {kDevice, "Model", {"device", "mixed-kernels"}},
      {kArithmetic, "Model", {"exact", "kv-cache-dtype"}},
      {kWire,
       "Ranks",
       {"mode", "stages", "stage-link", "wire", "sum-order", "gather-sum-bytes", "direct-sum-bytes",
        "overlap-rows"}},
      {kTemplate, "Model", {"chat-template"}},
      {kCut, "Ranks", {"ranks", "shares"}},
      {kPlace, "Ranks", {"config", "rank"}},
      {kRanks,
       "Ranks",
       {"collective", "rdma-mode", "interface", "rendezvous", "start-timeout-ms",
        "exchange-timeout-ms", "peer-timeout-ms", "verify-exchanges"}},
      {kLimits, "Limits", {"max-model-len", "max-num-seqs"}},
      {kChunk, "Limits", {"prefill-chunk"}},
      {kSecret, "Secret", {"secret-file"}},
      {kListen, "Address", {"host", "port"}},
      {kServing,
       "Serving",
       {"grpc-port", "served-model-name", "tls-cert", "tls-key", "drain-timeout-ms",
        "prefix-cache-dir", "recover", "circuit-failures", "circuit-window-ms", "circuit-wait-ms",
        "circuit-longest-wait-ms"}},
      {kKeys, "Serving", {"api-key-file"}},
      {kSchedule, "Serving", {"prefix-cache", "prefill-delay-ms"}},
      {kNodes, "Nodes", {"ssh", "node-program", "node-directory"}},
      {kPrompt,
       "Prompt",
       {"prompt", "system", "raw", "thinking", "max-tokens", "stop", "ignore-eos", "logprobs"}},
      {kSampling,
       "Sampling",
       {"temperature", "top-k", "top-p", "min-p", "repetition-penalty", "presence-penalty",
        "frequency-penalty"}},
      {kSeed, "Sampling", {"seed"}},
      {kBurn, "Burn", {"minutes"}},
      {kTokens, "Tokens", {"tokens"}},
      {kLogits, "Logits", {"step", "together", "dump-hidden", "fast", "draft"}},
      {kShard, "Files of ranks", {"quantize", "from"}},
      {kProbe, "Record", {"record"}},
      {kBench,
       "Benchmark",
       {"benchmark", "batch", "repeat", "formats", "rows", "sizes", "dtype", "added-latency-us",
        "modes", "rank-counts", "chart"}},
      {kLengths, "Lengths", {"prompt-tokens"}},
      {kContext, "Lengths", {"context"}},
      {kTrace,
       "Trace",
       {"trace", "rate", "duration-s", "day-curve", "output-tokens", "length-spread",
        "prefix-groups", "prefix-tokens"}},
      {kLoad,
       "Load",
       {"url", "tls-ca", "vocab-size", "request-timeout-ms", "slo-ttft-ms", "slo-itl-ms"}},
      {kFleet, "Fleet", {"replicas", "router"}},
      {kPlan, "Plan", {"hardware", "weights", "engine", "measured", "users", "draft-acceptance"}},
      {kLinks, "Links", {"transports"}},
      {kFiles, "Files", {"out"}},
      {kJson, "Output", {"json"}},
      {kOutput, "Output", {"log-level", "log-format"}},
  };
  return groups;
}

const GroupSpec* FindGroup(std::string_view option) {
  for (const GroupSpec& group : Groups()) {
    if (std::find(group.options.begin(), group.options.end(), option) != group.options.end())
      return &group;
  }
  return nullptr;
}

struct CommandSpec {
  const char* name;
  const char* summary;
  const char* positional;  // the option that a bare argument sets, or ""
  uint64_t groups;
};

constexpr uint64_t kVerify = kModel | kCompute | kDevice | kArithmetic | kTemplate | kCut | kPlace |
                             kRanks | kSecret | kLimits | kChunk | kProbe | kJson | kOutput;
constexpr uint64_t kTensorParallel = (kVerify & ~kProbe) | kWire;
constexpr uint64_t kCluster = kPlace | kNodes | kJson | kOutput;
constexpr uint64_t kText = kModel | kTemplate | kJson | kOutput;

constexpr CommandSpec kCommands[] = {
    {"run", "answer one prompt, streamed to the terminal", "prompt",
     kTensorParallel | kPrompt | kSampling | kSeed},
    {"chat", "talk to the model in the terminal", "model",
     kTensorParallel | kPrompt | kSampling | kSeed},
    {"serve", "serve the model over HTTP (OpenAI's API) and gRPC", "model",
     kTensorParallel | kListen | kServing | kKeys | kSchedule},
    {"worker", "join a cluster as one of its ranks", "model",
     kTensorParallel | kListen | kServing | kKeys | kSchedule},
    {"logits", "write the logits of token lists to a safetensors file", "model",
     kTensorParallel | kTokens | kLogits | kFiles},
    {"tokenize", "JSON lines on stdin: text to token ids", "model", kText},
    {"detokenize", "JSON lines on stdin: token ids to text", "model", kText},
    {"render", "JSON lines on stdin: chat messages to prompt text", "model", kText},
    {"inspect", "print what a checkpoint holds and what a token reads", "model",
     kModel | kJson | kOutput},
    {"shard", "write what each rank holds of a checkpoint to a file of its own", "model",
     kModel | kCompute | kCut | kPlace | kSecret | kFiles | kShard | kProbe | kOutput},
    {"files", "serve the files of a directory to other machines by HTTP", "model",
     kModel | kListen | kSecret | kProbe | kOutput},
    {"verify", "check files of ranks: their checksums and the logits of the probe prompt", "model",
     kVerify},
    {"bench", "measure kernels, exchanges, decode, prefill or modes here, or a server under load",
     "benchmark",
     kTensorParallel | kTokens | kBench | kLengths | kContext | kLinks | kProbe | kNodes | kKeys |
         kSeed | kTrace | kLoad | kFiles},
    {"burn", "hours of mixed requests: does every rank stay right, cool and as large as it is?",
     "model", kTensorParallel | kBurn | kSeed},
    {"doctor", "look at this machine and every link between ranks: what is wrong, what to use", "",
     kModel | kCut | kPlace | kRanks | kSecret | kLinks | kJson | kOutput},
    {"plan", "predict what hardware gives with a model: memory, speed, cost", "model",
     kModel | kArithmetic | kCut | kPlace | kWire | kChunk | kLengths | kContext | kPlan | kJson |
         kOutput},
    {"simulate", "predict how a cluster, or many of them, answer a trace of requests", "model",
     kModel | kArithmetic | kCut | kPlace | kWire | kLimits | kChunk | kSchedule | kSeed |
         kLengths | kPlan | kTrace | kFleet | kFiles | kJson | kOutput},
    {"up", "start the ranks of a cluster YAML on its nodes over ssh", "config", kCluster},
    {"down", "end the ranks that up started", "config", kCluster},
    {"status", "show the ranks that up started", "config", kCluster},
    {"version", "print the version and how it was built", "", kJson | kOutput},
};

const CommandSpec* FindCommand(std::string_view name) {
  for (const CommandSpec& command : kCommands) {
    if (name == command.name) return &command;
  }
  return nullptr;
}

std::string Overview() {
  std::string text =
      "lockstep runs one large model on several machines as one server.\n\n"
      "Usage: lockstep COMMAND [flags]\n\nCommands:\n";
  for (const CommandSpec& command : kCommands) {
    text += absl::StrFormat("  %-11s %s\n", command.name, command.summary);
  }
  return text +
         "\nFlags of a command: lockstep COMMAND --help\n"
         "Two ranks on this machine: lockstep run --model DIR --ranks 2 \"your question\"\n"
         "or under MPI: mpirun -n 2 lockstep run --model DIR \"your question\"\n";
}

std::vector<std::string> Spellings(const OptionSpec& spec) {
  std::vector<std::string> names = {std::string("--") + spec.name};
  for (std::string& other : Aliases(spec)) names.push_back(std::move(other));
  return names;
}

// CLI11 knows -x and --name, but vLLM's and llama.cpp's users also write -tp and -np.
bool IsLongWithOneDash(std::string_view name) {
  return name.size() > 2 && name[0] == '-' && name[1] != '-';
}

std::vector<std::string> ReplaceOneDashNames(std::span<const std::string> arguments) {
  // CLI11 would read these two as -c with a value. They have no twin here and are refused later.
  std::map<std::string, std::string> names = {{"-ctk", "--cache-type-k"},
                                              {"-ctv", "--cache-type-v"}};
  for (const OptionSpec& spec : OptionTable()) {
    for (const std::string& name : Spellings(spec)) {
      if (IsLongWithOneDash(name)) names[name] = std::string("--") + spec.name;
    }
  }
  std::vector<std::string> replaced(arguments.begin(), arguments.end());
  for (std::string& argument : replaced) {
    if (argument == "--") break;
    if (const auto found = names.find(argument); found != names.end()) argument = found->second;
  }
  return replaced;
}

// Flags of vLLM and llama.cpp that have no twin here, and what serves their purpose.
constexpr std::pair<std::string_view, const char*> kOfOtherServers[] = {
    {"--api-key",
     "a key on the command line is seen by everybody on the machine; put its name and SHA-256 into "
     "a file and give --api-key-file FILE"},
    {"--max-num-batched-tokens", "--prefill-chunk bounds the prompt tokens of a step"},
    {"--batch-size", "--prefill-chunk bounds the prompt tokens of a step"},
    {"--ubatch-size", "--prefill-chunk bounds the prompt tokens of a step"},
    {"--no-enable-prefix-caching", "give --prefix-cache=false"},
    {"--slot-save-path", "--prefix-cache-dir DIR keeps the cache over a restart"},
    {"--cache-type-k", "keys and values have one type, --kv-cache-dtype"},
    {"--cache-type-v", "keys and values have one type, --kv-cache-dtype"},
    {"--pipeline-parallel-size", "all ranks compute every layer together, --ranks"},
    {"--gpu-memory-utilization", "memory follows from --max-model-len and --max-num-seqs"},
    {"--tool-call-parser", "tool calls of GLM are always parsed"},
    {"--reasoning-parser", "GLM's thinking is always parsed"},
    {"--enable-auto-tool-choice", "tool calls of GLM are always parsed"},
    {"--jinja", "the template is recognised in the checkpoint, or given by --chat-template"}};

// The flags of one command as CLI11 sees them, with what was given for each.
class FlagParser {
 public:
  explicit FlagParser(const CommandSpec& command) : command_(command), app_(command.summary) {
    app_.set_help_flag("-h,--help", "print this help");
    app_.allow_extras();
    const std::string bare =
        *command.positional == '\0' ? "" : std::string(" [") + command.positional + "]";
    app_.name(std::string("lockstep ") + command.name + bare);
    for (const OptionSpec& spec : OptionTable()) AddOption(spec);
  }

  // Fills `text` if help was asked for.
  Status Parse(std::span<const std::string> arguments, std::string* text) {
    // Arguments after "--" are never flags.
    const auto marker = std::find(arguments.begin(), arguments.end(), "--");
    std::vector<std::string> reversed =
        ReplaceOneDashNames(arguments.first(marker - arguments.begin()));
    std::reverse(reversed.begin(), reversed.end());
    try {
      app_.parse(std::move(reversed));
    } catch (const CLI::CallForHelp&) {
      *text = app_.help();
      return OkStatus();
    } catch (const CLI::Error& error) {
      return UsageError("%s; `lockstep %s --help` lists the flags", error.what(), command_.name);
    }
    bare_ = app_.remaining();
    for (const std::string& argument : bare_) {
      if (argument.size() > 1 && argument[0] == '-') return RefuseFlag(argument);
    }
    if (marker != arguments.end()) bare_.insert(bare_.end(), marker + 1, arguments.end());
    const size_t taken = *command_.positional == '\0' ? 0 : 1;
    if (bare_.size() > taken) {
      return UsageError("unexpected argument '%s'%s; `lockstep %s --help` lists the flags",
                        bare_[taken], taken == 0 ? "" : "; put a text with spaces in quotes",
                        command_.name);
    }
    return OkStatus();
  }

  // Puts everything given over what `options` holds.
  Status Apply(Options* options, std::vector<std::string>* warnings) const {
    for (const OptionSpec& spec : OptionTable()) {
      const std::vector<std::string>& values = given_.at(spec.name)->values;
      if (values.empty()) continue;
      LOCKSTEP_RETURN_IF_ERROR(ApplyOne(spec, values, options));
      if (!given_.at(spec.name)->belongs) {
        warnings->push_back(
            absl::StrFormat("--%s has no effect on `lockstep %s`", spec.name, command_.name));
      }
    }
    if (bare_.empty()) return OkStatus();
    const OptionSpec* spec = FindOption(command_.positional);
    if (!given_.at(spec->name)->values.empty()) {
      return UsageError("'%s' and --%s both give the %s; leave one out", bare_.front(), spec->name,
                        spec->name);
    }
    return ApplyOne(*spec, bare_, options);
  }

  // What --config names, or the argument where that is the cluster YAML; empty: nothing.
  std::string Config() const {
    const std::vector<std::string>& values = given_.at("config")->values;
    if (!values.empty()) return values.back();
    return command_.positional == std::string_view("config") && !bare_.empty() ? bare_.front() : "";
  }

 private:
  struct GivenOption {
    std::vector<std::string> values;
    std::string flag;  // where the parser puts a flag's value
    bool belongs = true;
  };

  void AddOption(const OptionSpec& spec) {
    std::string names;
    for (const std::string& name : Spellings(spec)) {
      if (!IsLongWithOneDash(name)) names += (names.empty() ? "" : ",") + name;
    }
    auto given = std::make_unique<GivenOption>();
    GivenOption* target = given.get();
    given_[spec.name] = std::move(given);
    CLI::Option* option = nullptr;
    if (std::holds_alternative<bool Options::*>(spec.field)) {
      // As text, so that --flag=VALUE is judged where the YAML's is.
      option = app_.add_flag(names, target->flag, Help(spec))
                   ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
                   ->each([target](const std::string& value) { target->values = {value}; });
    } else if (std::holds_alternative<std::vector<std::string> Options::*>(spec.field)) {
      option = app_.add_option(names, target->values, Help(spec))
                   ->allow_extra_args(false)
                   ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
                   ->type_name("TEXT");
    } else {
      // Given twice, the last one counts: scripts append to a common line.
      option = app_.add_option_function<std::string>(
                       names, [target](const std::string& value) { target->values = {value}; },
                       Help(spec))
                   ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
                   ->type_name(TypeName(spec));
    }
    const std::string_view title = OptionGroup(spec.name);
    if (const GroupSpec* group = FindGroup(spec.name))
      target->belongs = (command_.groups & group->group) != 0;
    option->group(target->belongs ? std::string(title.empty() ? "Other" : title) : std::string());
  }

  static std::string Help(const OptionSpec& spec) {
    std::string text = spec.help;
    for (size_t i = 0; i < spec.allowed.size(); ++i) {
      text += (i == 0 ? " (" : ", ") + std::string(spec.allowed[i]);
    }
    return spec.allowed.empty() ? text : text + ")";
  }

  static std::string TypeName(const OptionSpec& spec) {
    if (std::holds_alternative<int64_t Options::*>(spec.field) ||
        std::holds_alternative<std::optional<int64_t> Options::*>(spec.field)) {
      return "N";
    }
    if (std::holds_alternative<double Options::*>(spec.field) ||
        std::holds_alternative<std::optional<double> Options::*>(spec.field)) {
      return "X";
    }
    if (std::holds_alternative<std::vector<double> Options::*>(spec.field)) return "X,X,...";
    return spec.allowed.empty() ? "TEXT" : "WORD";
  }

  static Status ApplyOne(const OptionSpec& spec, const std::vector<std::string>& values,
                         Options* options) {
    const std::string where = std::string("--") + spec.name;
    if (const auto* list = std::get_if<std::vector<std::string> Options::*>(&spec.field)) {
      (options->*(*list)).clear();  // the command line replaces the file's list
      for (const std::string& value : values) {
        LOCKSTEP_RETURN_IF_ERROR(SetOption(spec, value, where, options));
      }
      return OkStatus();
    }
    return SetOption(spec, values.back(), where, options);
  }

  Status RefuseFlag(const std::string& argument) const {
    // What stands behind it may be a secret.
    const std::string flag = argument.substr(0, argument.find('='));
    for (const auto& [name, remedy] : kOfOtherServers) {
      if (flag == name) return UsageError("there is no %s here: %s", flag, remedy);
    }
    std::vector<std::string> names = {"--help"};
    for (const OptionSpec& spec : OptionTable()) {
      for (std::string& name : Spellings(spec)) names.push_back(std::move(name));
    }
    const std::string nearest = Nearest(flag, names);
    return UsageError("unknown flag '%s'%s; `lockstep %s --help` lists the flags", flag,
                      nearest.empty() ? "" : "; did you mean '" + nearest + "'?", command_.name);
  }

  const CommandSpec& command_;
  CLI::App app_;
  std::map<std::string, std::unique_ptr<GivenOption>, std::less<>> given_;
  std::vector<std::string> bare_;  // arguments that are no flags: at most the positional one
};

// Plans and simulations are of programs other than this one too: what is as lockstep usually does
// it is taken to be left to the engine, unless the command line says it.
void LeaveToEngine(Options* options) {
  const Options usual;
  if (options->wire == usual.wire) options->wire.clear();
  if (options->prefill_chunk == usual.prefill_chunk) options->prefill_chunk = 0;
}

StatusOr<CommandLine> ParseCommand(const CommandSpec& command,
                                   std::span<const std::string> arguments) {
  CommandLine line;
  FlagParser parser(command);
  LOCKSTEP_RETURN_IF_ERROR(parser.Parse(arguments, &line.text));
  if (!line.text.empty()) return line;
  line.command = command.name;
  if (const std::string config = parser.Config(); !config.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const ClusterFile file, ReadClusterYaml(config));
    line.options = file.options;
  }
  if (line.command == "plan" || line.command == "simulate") LeaveToEngine(&line.options);
  LOCKSTEP_RETURN_IF_ERROR(parser.Apply(&line.options, &line.warnings));
  return line;
}

}  // namespace

std::string_view OptionGroup(std::string_view option) {
  const GroupSpec* group = FindGroup(option);
  return group == nullptr ? std::string_view() : group->title;
}

std::vector<std::string> CommandNames() {
  std::vector<std::string> names;
  for (const CommandSpec& command : kCommands) names.emplace_back(command.name);
  return names;
}

void ConfigureLog(const Options& options, int rank) {
  constexpr const char* kNames[] = {"debug", "info", "warning", "error", "off"};
  log::SetForm(options.log_format == "json" ? log::Form::kJson : log::Form::kText);
  for (int level = 0; level < 5; ++level) {
    if (options.log_level == kNames[level])
      return log::Configure(static_cast<log::Level>(level), rank);
  }
}

StatusOr<CommandLine> ParseCommandLine(std::span<const std::string> arguments) {
  CommandLine line;
  if (arguments.empty()) {
    return UsageError("no command given; `lockstep help` lists the commands");
  }
  const std::string& first = arguments.front();
  if (first == "--version" || first == "-V") {
    line.text = "lockstep " + SourceVersion() + "\n";
    return line;
  }
  if (first == "--help" || first == "-h" || first == "help") {
    if (arguments.size() == 1) {
      line.text = Overview();
      return line;
    }
    const std::vector<std::string> help = {"--help"};
    if (const CommandSpec* command = FindCommand(arguments[1])) return ParseCommand(*command, help);
  }
  const std::string& name = first == "help" ? arguments[1] : first;
  if (const CommandSpec* command = FindCommand(name)) {
    return ParseCommand(*command, arguments.subspan(1));
  }
  std::vector<std::string> names = CommandNames();
  names.emplace_back("help");
  const std::string nearest = Nearest(name, names);
  return UsageError("unknown command '%s'%s; `lockstep help` lists the commands", name,
                    nearest.empty() ? "" : "; did you mean '" + nearest + "'?");
}

}  // namespace lockstep
