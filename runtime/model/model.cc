// Opens a checkpoint, checks that config and tensors belong together, and hands both to the
// architecture that config.json names.
#include "runtime/model/model.h"

#include <cstdlib>

#include "runtime/base/file.h"
#include "runtime/model/architectures.h"
#include "runtime/model/weights.h"

namespace lockstep {
namespace {

// Layers above what config.json announces mean that the two do not belong together.
Status CheckLayerNames(const ModelConfig& config, const Checkpoint& checkpoint) {
  constexpr std::string_view kPrefix = "model.layers.";
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (name.compare(0, kPrefix.size(), kPrefix) != 0) continue;
    const int64_t layer = std::atoll(name.c_str() + kPrefix.size());
    if (layer >= config.num_hidden_layers + config.num_nextn_predict_layers) {
      return ModelError("%s: holds %s, but config.json announces %d layers and %d MTP layers",
                        info.data.file->path(), name, config.num_hidden_layers,
                        config.num_nextn_predict_layers);
    }
  }
  return OkStatus();
}

}  // namespace

void Batch::Clear() {
  tokens.clear();
  positions.clear();
  sequences.clear();
  block_tables.clear();
  output_rows.clear();
}

StatusOr<StepOutput> Model::Draft(const Batch&, std::span<const float>) {
  return InternalError("a draft was asked of a model without its draft layer");
}

StatusOr<ModelConfig> ConfigOf(const Checkpoint& checkpoint) {
  if (!IsDirectory(checkpoint.path()))
    return ParseModelConfig(checkpoint.config(), checkpoint.path());
  const std::string name = checkpoint.path() + "/config.json";
  if (checkpoint.config().empty()) {
    return ModelError("%s: is missing or empty; fetch it with the checkpoint's other files", name);
  }
  return ParseModelConfig(checkpoint.config(), name);
}

StatusOr<SlicePlan> PlanSlice(const ModelConfig& config, const Checkpoint& checkpoint,
                              const std::vector<double>& shares, int rank, bool draft_layer) {
  SlicePlan slice;
  slice.cuts = CutModel(config, shares, CutUnitsOf(checkpoint));
  if (draft_layer) slice.cuts.draft_rows = CutByShares(config.hidden_size, shares);
  WeightReader counter(checkpoint, rank);
  LOCKSTEP_ASSIGN_OR_RETURN(const Weights counted, LoadWeights(config, slice.cuts, counter));
  slice.weight_bytes = counted.bytes;
  slice.weight_bytes_per_token = counted.bytes_per_token;
  return slice;
}

StatusOr<std::unique_ptr<Model>> LoadModel(const LoadOptions& options, Group& group,
                                           const kernels::Backend& backend, ThreadPool& pool) {
  LOCKSTEP_ASSIGN_OR_RETURN(
      const auto checkpoint,
      Checkpoint::Open(options.directory, RankPlace{group.rank(), options.shares}));
  LOCKSTEP_ASSIGN_OR_RETURN(ModelConfig config, ConfigOf(*checkpoint));
  LOCKSTEP_RETURN_IF_ERROR(CheckLayerNames(config, *checkpoint));
  LOCKSTEP_ASSIGN_OR_RETURN(const SlicePlan slice, PlanSlice(config, *checkpoint, options.shares,
                                                             group.rank(), options.draft_layer));
  const ModelPlace place{group, backend, pool};
  // ParseModelConfig accepts no other architecture.
  return config.has_latent_attention()
             ? LoadGlm4MoeLite(std::move(config), *checkpoint, slice, options, place)
             : LoadGlm4Moe(std::move(config), *checkpoint, slice, options, place);
}

}  // namespace lockstep
