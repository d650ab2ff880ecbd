#include "launcher/commands/plan_question.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "launcher/cluster_yaml.h"
#include "launcher/commands/bench.h"
#include "launcher/hardware_yaml.h"
#include "launcher/memory.h"
#include "runtime/base/file.h"
#include "runtime/planner/known_models.h"
#include "runtime/planner/seats.h"

namespace lockstep {
namespace {

constexpr int64_t kUsualContext = 8192;
constexpr uint64_t kLargestFileBytes = uint64_t{64} << 20;
constexpr int64_t kMostTokens = 16'777'216;

StatusOr<std::unique_ptr<Checkpoint>> OpenOrKnown(const Options& options) {
  if (options.model.empty())
    return UsageError("--model is needed: a checkpoint, or a model's name with --weights");
  std::error_code error;
  if (!std::filesystem::exists(options.model, error)) {
    if (options.weights.empty()) {
      return UsageError(
          "'%s' is no file; a model that is known by its name (%s) needs --weights: q4_k_m, fp8, "
          "...",
          options.model, absl::StrJoin(KnownModels(), ", "));
    }
    return KnownModel(options.model, options.weights);
  }
  if (!options.weights.empty())
    return UsageError("--weights is of models without files; %s says its formats", options.model);
  return Checkpoint::Open(options.model);
}

// Nodes that are like this machine, or their rank's part of it, as far as nobody measured more.
StatusOr<planner::Hardware> MeasuredHardware(const Measured& measured, const Options& options,
                                             const HardwareCatalogue& catalogue) {
  if (!measured.gb_per_s.known()) {
    return UsageError(
        "--hardware is needed, or --measured with what `lockstep bench decode --json` printed");
  }
  planner::Hardware hardware;
  hardware.name = options.measured;
  hardware.nodes = std::max(1, measured.ranks);
  hardware.node.name = "as measured";
  hardware.node.family = "cpu";
  const int ranks_here = options.config.empty() ? hardware.nodes : 1;
  hardware.node.memory_gib = {
      static_cast<double>(MemoryForRank(ranks_here)) / (1024.0 * 1024 * 1024),
      "what is free on this machine, for each rank"};
  if (!catalogue.presets.empty()) {
    hardware.usd_per_kwh = catalogue.presets.front().usd_per_kwh;
    hardware.hours_per_day = catalogue.presets.front().hours_per_day;
  }
  return hardware;
}

// As many nodes as the command line or the cluster YAML say, whose prices go with their number.
Status SetNodes(const Options& options, planner::Hardware* hardware) {
  int64_t nodes = options.ranks;
  if (nodes == 0 && !options.config.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const ClusterFile file, ReadClusterYaml(options.config));
    nodes = static_cast<int64_t>(file.nodes.size());
  }
  if (nodes == 0) return OkStatus();
  planner::Figure& price = hardware->price_usd;
  if (price.known() && nodes != hardware->nodes) {
    price.value *= static_cast<double>(nodes) / hardware->nodes;
    absl::StrAppendFormat(&price.source, "; for %d of %d nodes", nodes, hardware->nodes);
  }
  hardware->nodes = static_cast<int>(nodes);
  return OkStatus();
}

Status DecideHardware(const Options& options, PlanQuestion* question) {
  LOCKSTEP_ASSIGN_OR_RETURN(
      const HardwareCatalogue catalogue,
      ParseHardwareCatalogue(std::string(HardwareText()), "configs/hardware/presets.yaml"));
  Measured& measured = question->measured;
  if (!options.measured.empty()) {
    const StatusOr<std::string> text = ReadTextFile(options.measured, kLargestFileBytes);
    if (!text.ok()) return UsageError("--measured: %s", MessageOf(text.status()));
    LOCKSTEP_ASSIGN_OR_RETURN(measured, ParseMeasured(*text, options.measured));
  }
  planner::Hardware& hardware = question->hardware;
  LOCKSTEP_ASSIGN_OR_RETURN(hardware, options.hardware.empty()
                                          ? MeasuredHardware(measured, options, catalogue)
                                          : FindHardware(options.hardware, catalogue));
  LOCKSTEP_RETURN_IF_ERROR(SetNodes(options, &hardware));
  LOCKSTEP_ASSIGN_OR_RETURN(question->engine,
                            FindEngine(options.engine, hardware.node.family, catalogue));
  Apply(measured, question->engine, &hardware);
  if (hardware.nodes > 1 && !hardware.link.latency_us.known()) {
    return UsageError(
        "nothing says how fast the links of the %d nodes are: add what `lockstep doctor --json` "
        "prints to --measured, or give a --hardware file with 'link'",
        hardware.nodes);
  }
  return OkStatus();
}

double WireBytes(const std::string& wire) {
  return wire == "bf16" ? 2 : wire == "int8" ? 1.125 : 4;
}

}  // namespace

StatusOr<PlanQuestion> ReadPlanQuestion(const Options& options) {
  PlanQuestion question;
  LOCKSTEP_RETURN_IF_ERROR(DecideHardware(options, &question));
  LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<double> shares,
                            ValidateShares(options.shares, question.hardware.nodes));
  LOCKSTEP_ASSIGN_OR_RETURN(question.checkpoint, OpenOrKnown(options));
  LOCKSTEP_ASSIGN_OR_RETURN(question.model, planner::CountModel(*question.checkpoint, shares));
  question.name = options.weights.empty() ? options.model : question.checkpoint->path();
  return question;
}

StatusOr<planner::Load> DecideLoad(const Options& options, const planner::Engine& engine,
                                   int64_t most_positions) {
  planner::Load load;
  load.users = options.users;
  load.context = options.context > 0 ? options.context : std::min(kUsualContext, most_positions);
  load.prompt = load.context;
  if (!options.prompt_tokens.empty()) {
    LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<int64_t> counts,
                              ParseCounts(options.prompt_tokens, "--prompt-tokens", kMostTokens));
    load.prompt = counts.front();
    if (counts.size() > 1 || load.prompt > load.context) {
      return UsageError("--prompt-tokens takes one number of at most --context %d here",
                        load.context);
    }
  }
  load.chunk = options.prefill_chunk > 0 ? options.prefill_chunk : engine.chunk;
  load.wire_bytes = WireBytes(options.wire.empty() ? engine.wire : options.wire);
  load.draft_acceptance = options.draft_acceptance;
  if (load.draft_acceptance.size() > 8)
    return UsageError("--draft-acceptance: %d drafts; 8 are the most",
                      load.draft_acceptance.size());
  // The option table and the catalogue allow no other names.
  LOCKSTEP_ASSIGN_OR_RETURN(
      load.cache, kernels::CacheTypeOf(options.kv_cache_dtype == "auto" ? engine.cache
                                                                        : options.kv_cache_dtype));
  return load;
}

Status CheckSizes(const planner::CountedModel& model, const planner::Load& load) {
  constexpr double kMostBytes = 1e18;
  const auto positions = static_cast<double>(
      std::max(load.context, model.config.max_position_embeddings) + kBlockTokens);
  const double bytes = planner::CacheBytesOf(planner::WholeModel(model).front(), load.cache) *
                       positions * static_cast<double>(load.users);
  if (bytes <= kMostBytes) return OkStatus();
  return UsageError("the caches of %d users of %g positions would take %g bytes; lower --users",
                    load.users, positions, bytes);
}

}  // namespace lockstep
