#include "runtime/model/shard_plan.h"

#include <cstdlib>
#include <set>

#include "runtime/model/shape.h"
#include "runtime/model/weights.h"
#include "runtime/tensor/quantize.h"

namespace lockstep {
namespace {

constexpr const char* kGroups[] = {"attention", "dense", "experts", "shared", "embedding", "head"};
constexpr size_t kDefaultGroups = 4;  // those that a format without a group is for
constexpr char kLayers[] = "model.layers.";

bool Has(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

bool IsOfDraftLayer(const ModelConfig& config, const std::string& name) {
  const size_t prefix = std::string_view(kLayers).size();
  return name.compare(0, prefix, kLayers) == 0 &&
         std::atoll(name.c_str() + prefix) >= config.num_hidden_layers;
}

// The group of a matrix; empty if it is of none.
std::string_view GroupOf(const ModelConfig& config, const std::string& name) {
  if (!name.ends_with(".weight") || IsOfDraftLayer(config, name) || Has(name, "norm")) return {};
  if (Has(name, "embed_tokens.")) return "embedding";
  if (Has(name, "lm_head.")) return "head";
  if (Has(name, "self_attn.")) return Has(name, ".kv_b_proj.") ? "" : "attention";
  if (Has(name, "mlp.experts.")) return "experts";
  if (Has(name, "mlp.shared_experts.")) return "shared";
  if (Has(name, "mlp.gate.")) return {};
  return Has(name, "mlp.") ? "dense" : "";
}

StatusOr<std::map<std::string, WeightFormat, std::less<>>> ParseChoices(std::string_view text) {
  std::map<std::string, WeightFormat, std::less<>> choices;
  std::set<std::string> named;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string_view part = text.substr(begin, end - begin);
    begin = end + 1;
    const size_t equals = part.find('=');
    const std::string_view format_name =
        equals == std::string_view::npos ? part : part.substr(equals + 1);
    StatusOr<WeightFormat> format = QuantizedFormat(format_name);
    if (!format.ok()) return Annotate(format.status(), "--quantize");
    const std::string group(equals == std::string_view::npos ? "" : part.substr(0, equals));
    if (!named.insert(group).second) {
      return UsageError("--quantize: %s has two formats; give one",
                        group.empty() ? "everything" : group);
    }
    bool known = false;
    for (size_t i = 0; i < std::size(kGroups); ++i) {
      const bool meant =
          equals == std::string_view::npos ? i < kDefaultGroups : kGroups[i] == group;
      known = known || meant;
      // What is named wins over what is not, whatever their order.
      if (meant && (!group.empty() || !named.contains(kGroups[i])))
        choices.insert_or_assign(kGroups[i], *format);
    }
    if (!known) {
      return UsageError(
          "--quantize: '%s' is not a group; these are: attention, dense, experts, shared, "
          "embedding, head",
          group);
    }
  }
  return choices;
}

}  // namespace

StatusOr<std::map<std::string, WeightFormat>> QuantizedFormats(const ModelConfig& config,
                                                               const Checkpoint& checkpoint,
                                                               std::string_view quantize) {
  std::map<std::string, WeightFormat> formats;
  if (quantize.empty()) return formats;
  LOCKSTEP_ASSIGN_OR_RETURN(const auto choices, ParseChoices(quantize));
  for (const auto& [name, info] : checkpoint.tensors()) {
    const auto choice = choices.find(GroupOf(config, name));
    if (choice == choices.end() || info.shape.size() != 2) continue;
    const bool any_width = choice->second.encoding == Encoding::kFp8;
    if (!any_width && info.shape[1] % kBlockWeights != 0) continue;
    if (choice->second != info.format) formats[name] = choice->second;
  }
  return formats;
}

StatusOr<std::vector<std::vector<SliceRequest>>> PlanShards(const ModelConfig& config,
                                                            const Checkpoint& checkpoint,
                                                            const std::vector<double>& shares,
                                                            std::vector<std::string>* left_out) {
  const Cuts cuts = CutModel(config, shares, CutUnitsOf(checkpoint));
  std::vector<std::vector<SliceRequest>> slices(shares.size());
  for (size_t rank = 0; rank < shares.size(); ++rank) {
    WeightReader counter(checkpoint, static_cast<int>(rank));
    counter.RecordTo(&slices[rank]);
    LOCKSTEP_RETURN_IF_ERROR(LoadWeights(config, cuts, counter).status());
  }
  std::set<std::string_view> used;
  for (const SliceRequest& request : slices[0]) used.insert(request.name);
  std::vector<std::string> unused;
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (!used.contains(name)) unused.push_back(name);
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckUnused(config, unused));
  for (const std::string& name : unused) {
    if (IsOfDraftLayer(config, name)) left_out->push_back(name);
  }
  return slices;
}

}  // namespace lockstep
