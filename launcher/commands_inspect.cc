// `lockstep inspect`: what a checkpoint holds, before anything is loaded.
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <string_view>

#include "absl/strings/str_format.h"
#include "launcher/commands.h"
#include "nlohmann/json.hpp"
#include "runtime/model/model.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep {
namespace {

enum Component { kEmbedding, kAttention, kDense, kRouter, kExperts, kShared, kNorms, kMtp, kHead };
constexpr std::array<const char*, kHead + 1> kComponentNames = {
    "embedding",      "attention", "dense feed-forward", "router", "experts",
    "shared experts", "norms",     "mtp layer",          "head"};

bool Has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

Component ComponentOf(const std::string& name, const ModelConfig& config) {
  constexpr std::string_view kLayers = "model.layers.";
  if (name.compare(0, kLayers.size(), kLayers) == 0 &&
      std::atoll(name.c_str() + kLayers.size()) >= config.num_hidden_layers) {
    return kMtp;
  }
  if (Has(name, "embed_tokens")) return kEmbedding;
  if (Has(name, "lm_head")) return kHead;
  if (Has(name, "norm")) return kNorms;
  if (Has(name, "self_attn.")) return kAttention;
  if (Has(name, "mlp.experts.")) return kExperts;
  if (Has(name, "mlp.shared_experts.")) return kShared;
  if (Has(name, "mlp.gate.")) return kRouter;
  return kDense;
}

struct Sums {
  int64_t tensors = 0;
  double weights = 0;
  uint64_t bytes = 0;
  std::map<std::string, uint64_t> formats;  // bytes by name
};

using Table = std::array<Sums, kComponentNames.size()>;

Table Count(const Checkpoint& checkpoint, const ModelConfig& config) {
  Table table;
  for (const auto& [name, info] : checkpoint.tensors()) {
    Sums& sums = table[ComponentOf(name, config)];
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

// What decoding one token reads of the files' bytes: everything but the embedding, the draft layer
// and the experts that the router leaves out.
uint64_t BytesPerToken(const Table& table, const ModelConfig& config) {
  double bytes = 0;
  for (const Component part : {kAttention, kDense, kRouter, kShared, kNorms, kHead})
    bytes += static_cast<double>(table[part].bytes);
  if (table[kHead].tensors == 0) bytes += static_cast<double>(table[kEmbedding].bytes);  // tied
  if (config.n_routed_experts > 0) {
    bytes += static_cast<double>(table[kExperts].bytes) *
             static_cast<double>(config.num_experts_per_tok) /
             static_cast<double>(config.n_routed_experts);
  }
  return static_cast<uint64_t>(bytes);
}

std::string FormatList(const Sums& sums) {
  std::string text;
  for (const auto& [name, bytes] : sums.formats) text += (text.empty() ? "" : ", ") + name;
  return text;
}

void PrintTable(const Table& table, const Checkpoint& checkpoint, const ModelConfig& config,
                uint64_t total) {
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
  for (size_t i = 0; i < table.size(); ++i) {
    const Sums& sums = table[i];
    if (sums.weights == 0) continue;
    std::printf("%-20s %8d %12.3f %12.3f %6.2f  %s\n", kComponentNames[i],
                static_cast<int>(sums.tensors), sums.weights / 1e6,
                static_cast<double>(sums.bytes) / 1e6,
                8.0 * static_cast<double>(sums.bytes) / sums.weights, FormatList(sums).c_str());
  }
  std::printf("\nall tensors: %.3f MB; read per decoded token: %.3f MB\n",
              static_cast<double>(total) / 1e6,
              static_cast<double>(BytesPerToken(table, config)) / 1e6);
}

void PrintJson(const Table& table, const Checkpoint& checkpoint, const ModelConfig& config,
               uint64_t total) {
  nlohmann::ordered_json components = nlohmann::ordered_json::object();
  for (size_t i = 0; i < table.size(); ++i) {
    if (table[i].tensors == 0) continue;
    components[kComponentNames[i]] = {{"tensors", table[i].tensors},
                                      {"weights", table[i].weights},
                                      {"bytes", table[i].bytes},
                                      {"formats", table[i].formats}};
  }
  const nlohmann::ordered_json line = {{"model", checkpoint.path()},
                                       {"architecture", config.model_type},
                                       {"layers", config.num_hidden_layers},
                                       {"mtp_layers", config.num_nextn_predict_layers},
                                       {"components", components},
                                       {"bytes", total},
                                       {"bytes_per_token", BytesPerToken(table, config)}};
  std::printf("%s\n", line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

}  // namespace

Status InspectCommand(const Options& options) {
  if (options.model.empty())
    return UsageError("--model is needed: a checkpoint directory or a .gguf file");
  LOCKSTEP_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.model));
  LOCKSTEP_ASSIGN_OR_RETURN(const ModelConfig config, ConfigOf(*checkpoint));
  const Table table = Count(*checkpoint, config);
  uint64_t total = 0;
  for (const Sums& sums : table) total += sums.bytes;
  options.json ? PrintJson(table, *checkpoint, config, total)
               : PrintTable(table, *checkpoint, config, total);
  return OkStatus();
}

}  // namespace lockstep
