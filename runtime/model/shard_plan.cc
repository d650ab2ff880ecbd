#include "runtime/model/shard_plan.h"

#include <set>

#include "runtime/model/shape.h"
#include "runtime/model/tensor_groups.h"
#include "runtime/model/weights.h"
#include "runtime/tensor/quantize.h"

namespace lockstep {
namespace {

constexpr const char* kGroups[] = {"attention", "dense",     "experts", "shared",
                                   "draft",     "embedding", "head"};
constexpr size_t kDefaultGroups = 4;  // those that a format without a group is for

// What --quantize calls the group of a matrix; empty if it has no word for it.
std::string_view WordOf(const ModelConfig& config, std::string_view name) {
  const auto has = [&](std::string_view part) { return name.find(part) != std::string_view::npos; };
  if (!name.ends_with(".weight") || has(".kv_b_proj.")) return {};
  switch (GroupOf(config, name)) {
    case TensorGroup::kAttention:
      return "attention";
    case TensorGroup::kDense:
      return "dense";
    case TensorGroup::kExperts:
      return "experts";
    case TensorGroup::kShared:
      return "shared";
    case TensorGroup::kEmbedding:
      return "embedding";
    case TensorGroup::kHead:
      return "head";
    case TensorGroup::kDraft:
      // No router, and no tables of its own: most are copies of the model's, which are left out.
      return has(".self_attn.") || (has(".mlp.") && !has(".mlp.gate.")) || has(".eh_proj.")
                 ? "draft"
                 : "";
    case TensorGroup::kRouter:
    case TensorGroup::kNorms:
      return {};
  }
  return {};
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
          "--quantize: '%s' is not a group; these are: attention, dense, experts, shared, draft, "
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
    const auto choice = choices.find(WordOf(config, name));
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
  Cuts cuts = CutModel(config, shares, CutUnitsOf(checkpoint));
  if (HasDraftLayer(config, checkpoint)) cuts.draft_rows = CutByShares(config.hidden_size, shares);
  std::vector<std::vector<SliceRequest>> slices(shares.size());
  std::vector<std::string> unused;
  std::map<std::string, bool> known_copies;
  for (size_t rank = 0; rank < shares.size(); ++rank) {
    WeightReader counter(checkpoint, static_cast<int>(rank));
    counter.RecordTo(&slices[rank]);
    counter.ShareKnownCopies(&known_copies);
    LOCKSTEP_RETURN_IF_ERROR(LoadWeights(config, cuts, counter).status());
    unused = counter.Unused();
  }
  LOCKSTEP_RETURN_IF_ERROR(CheckUnused(config, unused));
  std::set<std::string_view> written;
  for (const SliceRequest& request : slices[0]) written.insert(request.name);
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (GroupOf(config, name) == TensorGroup::kDraft && !written.contains(name))
      left_out->push_back(name);
  }
  return slices;
}

}  // namespace lockstep
