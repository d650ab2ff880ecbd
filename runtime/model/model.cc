// Opens a checkpoint, checks that config and tensors belong together, and hands both to the
// architecture that config.json names.
#include "runtime/model/model.h"

#include <cstdlib>

#include "runtime/base/digest.h"
#include "runtime/base/file.h"
#include "runtime/model/architectures.h"

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
                        info.file->path(), name, config.num_hidden_layers,
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

StatusOr<std::unique_ptr<Model>> LoadModel(const LoadOptions& options, Group& group,
                                           const kernels::Backend& backend, ThreadPool& pool) {
  LOCKSTEP_ASSIGN_OR_RETURN(ModelConfig config, ReadModelConfig(options.directory));
  LOCKSTEP_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(options.directory));
  LOCKSTEP_RETURN_IF_ERROR(CheckLayerNames(config, *checkpoint));
  // ParseModelConfig accepts no other architecture.
  return LoadGlm4Moe(std::move(config), *checkpoint, options, {group, backend, pool});
}

StatusOr<uint64_t> CheckpointDigest(const std::string& directory) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto checkpoint, Checkpoint::Open(directory));
  LOCKSTEP_ASSIGN_OR_RETURN(
      const std::string config,
      ReadTextFile(directory + "/config.json", uint64_t{16} << 20, ErrorKind::kModel));
  LOCKSTEP_ASSIGN_OR_RETURN(const uint64_t tensors, checkpoint->Digest());
  return DigestOf(config.data(), config.size(), tensors);
}

}  // namespace lockstep
