// `lockstep inspect`: what a checkpoint holds, before anything is loaded.
#include "launcher/commands/inspect.h"

#include <cstdio>
#include <map>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "launcher/commands/commands.h"
#include "nlohmann/json.hpp"
#include "runtime/model/model.h"
#include "runtime/model/tensor_groups.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/shard_file.h"

namespace lockstep {
namespace {

struct Sums {
  int64_t tensors = 0;
  double weights = 0;
  uint64_t bytes = 0;
  std::map<std::string, uint64_t> formats;  // bytes by name
};

using Table = std::map<TensorGroup, Sums>;

Table Count(const Checkpoint& checkpoint, const ModelConfig& config) {
  Table table;
  for (const auto& [group, title] : kComponents) table[group];
  for (const auto& [name, info] : checkpoint.tensors()) {
    Sums& sums = table[GroupOf(config, name)];
    double weights = 1;
    for (const int64_t length : info.shape) weights *= static_cast<double>(length);
    ++sums.tensors;
    sums.weights += weights;
    sums.bytes += info.stored_bytes();
    const bool plain = info.storage == Storage::kPlain;
    sums.formats[plain ? info.data.type : info.format.Name()] += info.stored_bytes();
  }
  return table;
}

uint64_t BytesPerToken(const Table& table, const ModelConfig& config) {
  std::map<TensorGroup, uint64_t> bytes;
  for (const auto& [group, sums] : table) {
    if (sums.tensors > 0) bytes[group] = sums.bytes;
  }
  return lockstep::BytesPerToken(std::move(bytes), config);
}

std::string FormatList(const Sums& sums) {
  std::string text;
  for (const auto& [name, bytes] : sums.formats) text += (text.empty() ? "" : ", ") + name;
  return text;
}

void PrintTable(const Table& table, const Checkpoint& checkpoint, const ModelConfig& config,
                uint64_t total, uint64_t bytes_per_token) {
  std::printf("%s: %s, %d layers", checkpoint.path().c_str(), config.model_type.c_str(),
              static_cast<int>(config.num_hidden_layers));
  if (config.num_nextn_predict_layers > 0)
    std::printf(" + %d for drafts", static_cast<int>(config.num_nextn_predict_layers));
  std::printf(", hidden %d, %d experts (%d a token), context %d\n\n",
              static_cast<int>(config.hidden_size), static_cast<int>(config.n_routed_experts),
              static_cast<int>(config.num_experts_per_tok),
              static_cast<int>(config.max_position_embeddings));
  std::printf("%-20s %8s %12s %12s %6s  %s\n", "component", "tensors", "M weights", "MB", "bits",
              "formats");
  for (const auto& [group, title] : kComponents) {
    const Sums& sums = table.at(group);
    if (sums.weights == 0) continue;
    std::printf("%-20s %8d %12.3f %12.3f %6.2f  %s\n", title, static_cast<int>(sums.tensors),
                sums.weights / 1e6, static_cast<double>(sums.bytes) / 1e6,
                8.0 * static_cast<double>(sums.bytes) / sums.weights, FormatList(sums).c_str());
  }
  std::printf("\nall tensors: %.3f MB; read per decoded token: %.3f MB\n",
              static_cast<double>(total) / 1e6, static_cast<double>(bytes_per_token) / 1e6);
}

void PrintJson(const Table& table, const Checkpoint& checkpoint, const ModelConfig& config,
               uint64_t total, uint64_t bytes_per_token) {
  nlohmann::ordered_json components = nlohmann::ordered_json::object();
  for (const auto& [group, title] : kComponents) {
    const Sums& sums = table.at(group);
    if (sums.tensors == 0) continue;
    components[title] = {{"tensors", sums.tensors},
                         {"weights", sums.weights},
                         {"bytes", sums.bytes},
                         {"formats", sums.formats}};
  }
  const nlohmann::ordered_json line = {
      {"model", checkpoint.path()},         {"architecture", config.model_type},
      {"layers", config.num_hidden_layers}, {"mtp_layers", config.num_nextn_predict_layers},
      {"components", components},           {"bytes", total},
      {"bytes_per_token", bytes_per_token}};
  std::printf("%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

}  // namespace

uint64_t BytesPerToken(std::map<TensorGroup, uint64_t> bytes, const ModelConfig& config) {
  using enum TensorGroup;
  const TensorGroup head = bytes.contains(kHead) ? kHead : kEmbedding;
  uint64_t sum = 0;
  for (const TensorGroup part : {kAttention, kDense, kRouter, kShared, kNorms, head})
    sum += bytes[part];
  if (config.n_routed_experts > 0) {
    sum += static_cast<uint64_t>(static_cast<double>(bytes[kExperts]) *
                                 static_cast<double>(config.num_experts_per_tok) /
                                 static_cast<double>(config.n_routed_experts));
  }
  return sum;
}

Status InspectCommand(const Options& options) {
  if (options.model.empty())
    return UsageError("--model is needed: a checkpoint directory or a .gguf file");
  LOCKSTEP_ASSIGN_OR_RETURN(const bool shards, HoldsShards(options.model));
  if (shards) return InspectFilesOfRanks(options);
  LOCKSTEP_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  LOCKSTEP_ASSIGN_OR_RETURN(const ModelConfig config, ConfigOf(*checkpoint));
  const Table table = Count(*checkpoint, config);
  uint64_t total = 0;
  for (const auto& [group, sums] : table) total += sums.bytes;
  // What a load looks at before it reads: a table of what cannot be loaded is no good news. A token
  // reads the formats of memory, some of which are wider than those of the file.
  const StatusOr<SlicePlan> plan = PlanSlice(config, *checkpoint, {1}, 0);
  const uint64_t bytes_per_token =
      plan.ok() ? plan->weight_bytes_per_token : BytesPerToken(table, config);
  options.json ? PrintJson(table, *checkpoint, config, total, bytes_per_token)
               : PrintTable(table, *checkpoint, config, total, bytes_per_token);
  return plan.status();
}

}  // namespace lockstep
