// Opens a checkpoint, checks that config and tensors belong together, and hands both to the
// architecture that config.json names.
#include "runtime/model/model.h"

#include "runtime/model/architectures.h"
#include "runtime/model/decoder.h"
#include "runtime/model/tensor_groups.h"
#include "runtime/model/weights.h"

namespace lockstep {
namespace {

// Layers above what config.json announces mean that the two do not belong together.
Status CheckLayerNames(const ModelConfig& config, const Checkpoint& checkpoint) {
  for (const auto& [name, info] : checkpoint.tensors()) {
    if (LayerOf(name).value_or(-1) >= config.num_hidden_layers + config.num_nextn_predict_layers) {
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
  if (checkpoint.config().empty()) {
    return ModelError("%s: is missing or empty; fetch it with the checkpoint's other files",
                      checkpoint.config_file());
  }
  return ParseModelConfig(checkpoint.config(), checkpoint.config_file());
}

StatusOr<SlicePlan> PlanSlice(const ModelConfig& config, const Checkpoint& checkpoint,
                              const std::vector<double>& shares, int rank, bool draft_layer,
                              const kernels::Backend* backend, const StagePlace& stage) {
  LOCKSTEP_RETURN_IF_ERROR(CheckLayerNames(config, checkpoint));
  SlicePlan slice;
  slice.cuts = CutModel(config, shares, CutUnitsOf(checkpoint));
  if (draft_layer) slice.cuts.draft_rows = CutByShares(config.hidden_size, shares);
  if (stage.shares.size() > 1) {
    // All of the checkpoint is looked at, whichever layers this rank holds of it.
    WeightReader whole(checkpoint, rank, backend);
    LOCKSTEP_RETURN_IF_ERROR(LoadWeights(config, slice.cuts, whole).status());
    LOCKSTEP_RETURN_IF_ERROR(CheckUnused(config, whole.Unused()));
    LOCKSTEP_ASSIGN_OR_RETURN(const std::vector<Range> layers,
                              CutLayers(config, checkpoint, stage.shares));
    slice.cuts.layers = layers[static_cast<size_t>(stage.stage)];
  }
  WeightReader counter(checkpoint, rank, backend);
  counter.RecordTo(&slice.requests);
  LOCKSTEP_ASSIGN_OR_RETURN(const Weights counted, LoadWeights(config, slice.cuts, counter));
  if (stage.shares.size() == 1) LOCKSTEP_RETURN_IF_ERROR(CheckUnused(config, counter.Unused()));
  slice.weight_bytes = counted.bytes;
  slice.weight_bytes_per_token = counted.bytes_per_token;
  slice.work_bytes = counter.work_bytes();
  slice.staging_bytes = counter.staging_bytes() +
                        ReadAhead::BytesFor(PlanReads(checkpoint, shares, rank, slice.requests));
  return slice;
}

StatusOr<OpenedModel> OpenModelFiles(const std::string& path, const RankPlace& place,
                                     bool draft_layer, const kernels::Backend& backend,
                                     const StagePlace& stage) {
  OpenedModel opened;
  LOCKSTEP_ASSIGN_OR_RETURN(opened.checkpoint, Checkpoint::Open(path, place));
  LOCKSTEP_ASSIGN_OR_RETURN(opened.config, ConfigOf(*opened.checkpoint));
  LOCKSTEP_ASSIGN_OR_RETURN(opened.slice, PlanSlice(opened.config, *opened.checkpoint, place.shares,
                                                    place.rank, draft_layer, &backend, stage));
  return opened;
}

std::unique_ptr<Decoder> MakeDecoder(ModelConfig config, const ModelLimits& limits,
                                     const LocalShape& shape, Weights weights,
                                     const ModelPlace& place) {
  // ParseModelConfig accepts no other architecture.
  const auto make = config.has_latent_attention() ? MakeGlm4MoeLite : MakeGlm4Moe;
  return make(std::move(config), limits, shape, std::move(weights), place);
}

StatusOr<std::unique_ptr<Model>> LoadModel(const OpenedModel& opened, const LoadOptions& options,
                                           Group& group, const kernels::Backend& backend,
                                           ThreadPool& pool) {
  const ModelConfig& config = opened.config;
  const Cuts& cuts = opened.slice.cuts;
  const int rank = group.rank();
  const MemoryPlan plan = PlanMemory(config, opened.slice, options.limits, rank, pool.count());
  // Gone, with what tensors passed through, before the cache and the scratch are taken.
  auto loader =
      std::make_unique<SliceLoader>(*opened.checkpoint, group, options.shares, [&](uint64_t bytes) {
        if (options.progress) options.progress(LoadProgress{bytes, plan.weight_bytes});
      });
  LOCKSTEP_RETURN_IF_ERROR(loader->ReadAheadFor(opened.slice.requests));
  WeightReader reader(*loader, backend, pool);
  LOCKSTEP_ASSIGN_OR_RETURN(Weights weights, LoadWeights(config, cuts, reader));
  const uint64_t bytes_read = loader->bytes_read();
  loader.reset();
  auto model = MakeDecoder(config, options.limits, ShapeOf(config, cuts, rank), std::move(weights),
                           {group, backend, pool});
  LOCKSTEP_RETURN_IF_ERROR(model->Allocate(plan, bytes_read));
  if (options.share_choices) model->ShareChoices();
  return model;
}

StatusOr<std::unique_ptr<Model>> LoadModel(const LoadOptions& options, Group& group,
                                           const kernels::Backend& backend, ThreadPool& pool) {
  LOCKSTEP_ASSIGN_OR_RETURN(const OpenedModel opened,
                            OpenModelFiles(options.directory, {group.rank(), options.shares},
                                           options.draft_layer, backend, options.stage));
  return LoadModel(opened, options, group, backend, pool);
}

}  // namespace lockstep
