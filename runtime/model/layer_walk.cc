#include "runtime/model/layer_walk.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "runtime/base/check.h"
#include "runtime/model/decoder.h"
#include "runtime/model/weights.h"

namespace lockstep {
namespace {

constexpr int64_t kEmbedding = -1;  // part: before layer 0; the head comes behind the last layer

struct Part {
  PackedPtr matrix;              // the embedding or the head
  Layer layer;                   // else
  std::vector<float> next_norm;  // that follows, but for the head
};

StatusOr<Part> LoadPart(WeightReader& reader, const ModelConfig& config, const Cuts& cuts,
                        int64_t index) {
  Part part;
  if (index == config.num_hidden_layers) {
    LOCKSTEP_ASSIGN_OR_RETURN(part.matrix, LoadHead(reader, config, cuts));
    return part;
  }
  if (index == kEmbedding) {
    LOCKSTEP_ASSIGN_OR_RETURN(part.matrix, LoadEmbedding(reader, config, cuts));
  } else {
    LOCKSTEP_ASSIGN_OR_RETURN(part.layer, LoadLayer(reader, config, cuts, index));
  }
  const bool last = index + 1 == config.num_hidden_layers;
  LOCKSTEP_ASSIGN_OR_RETURN(part.next_norm, last ? LoadFinalNorm(reader, config)
                                                 : LoadInputNorm(reader, config, index + 1));
  return part;
}

std::string NameOf(const ModelConfig& config, int64_t index) {
  if (index == kEmbedding) return "the embedding";
  if (index == config.num_hidden_layers) return "the head";
  return absl::StrFormat("layer %d", index);
}

Status Repack(const kernels::Backend& backend, Part* part) {
  std::vector<PackedPtr*> matrices = {&part->matrix};
  if (part->matrix == nullptr) matrices = MatricesOf(part->layer);
  for (PackedPtr* matrix : matrices) {
    LOCKSTEP_ASSIGN_OR_RETURN(*matrix, backend.Repack(std::move(*matrix)));
  }
  return OkStatus();
}

Status RunPart(Decoder& decoder, const Batch& batch, const Part& part, int64_t index,
               std::vector<float>* logits) {
  if (index < decoder.config().num_hidden_layers) {
    LOCKSTEP_RETURN_IF_ERROR(
        index == kEmbedding
            ? decoder.BeginStep(batch, *part.matrix, part.next_norm)
            : decoder.StepLayer(batch, static_cast<size_t>(index), part.layer, part.next_norm));
    return decoder.Finish();  // the weights go
  }
  LOCKSTEP_ASSIGN_OR_RETURN(const StepOutput output, decoder.Head(batch, *part.matrix));
  logits->assign(output.logits.begin(), output.logits.end());
  return OkStatus();
}

// What the files say of these tensors, whatever they are brought to on the way.
uint64_t BytesInFiles(const Checkpoint& checkpoint, const std::vector<SliceRequest>& requests) {
  uint64_t bytes = 0;
  for (const SliceRequest& request : requests) {
    const TensorInfo* info = checkpoint.Find(request.name);
    if (info == nullptr || request.slice.range.empty()) continue;
    bytes += info->original != nullptr ? info->original->stored_bytes() : info->stored_bytes();
  }
  return bytes;
}

}  // namespace

LayerWalk::LayerWalk(const Checkpoint& checkpoint, ModelConfig config, LayerWalkOptions options)
    : checkpoint_(&checkpoint),
      config_(std::move(config)),
      cuts_(CutModel(config_, {1}, CutUnitsOf(checkpoint))),
      options_(std::move(options)) {}

// Cache and scratch of one backend's decoder, which stay while the parts come and go.
MemoryPlan LayerWalk::PlanBeside() const {
  SlicePlan without_weights;
  without_weights.cuts = cuts_;
  return PlanMemory(config_, without_weights, options_.limits, 0, options_.threads);
}

Status LayerWalk::CountPart(int64_t index, uint64_t* largest_bytes, uint64_t* work_bytes) {
  uint64_t bytes = 0;
  for (const kernels::Backend* backend : options_.backends) {
    std::vector<SliceRequest> requests;
    WeightReader counter(*checkpoint_, 0, backend);
    counter.RecordTo(&requests);
    LOCKSTEP_RETURN_IF_ERROR(LoadPart(counter, config_, cuts_, index).status());
    bytes = std::max(bytes, counter.bytes() + counter.staging_bytes());
    *work_bytes = std::max(*work_bytes, counter.work_bytes());
    if (backend == options_.backends.front())
      plan_.file_bytes += BytesInFiles(*checkpoint_, requests);
  }
  if (bytes <= *largest_bytes) return OkStatus();
  *largest_bytes = bytes;
  plan_.largest_part = NameOf(config_, index);
  return OkStatus();
}

StatusOr<LayerWalk> LayerWalk::Plan(const Checkpoint& checkpoint, LayerWalkOptions options) {
  LOCKSTEP_CHECK(!options.backends.empty());
  LOCKSTEP_ASSIGN_OR_RETURN(ModelConfig config, ConfigOf(checkpoint));
  LayerWalk walk(checkpoint, std::move(config), std::move(options));
  uint64_t largest_bytes = 0, work_bytes = 0;
  for (int64_t index = kEmbedding; index <= walk.config_.num_hidden_layers; ++index)
    LOCKSTEP_RETURN_IF_ERROR(walk.CountPart(index, &largest_bytes, &work_bytes));
  const auto threads = static_cast<uint64_t>(walk.options_.threads);
  walk.plan_.memory_bytes = walk.options_.backends.size() * walk.PlanBeside().lasting() +
                            work_bytes + largest_bytes + threads * SliceLoader::kThreadBytes;
  return walk;
}

StatusOr<std::vector<std::vector<float>>> LayerWalk::Run(const Batch& batch, Group& group,
                                                         ThreadPool& pool) const {
  LOCKSTEP_CHECK(group.size() == 1);
  std::vector<std::unique_ptr<Decoder>> decoders;
  for (const kernels::Backend* backend : options_.backends) {
    decoders.push_back(MakeDecoder(config_, options_.limits, ShapeOf(config_, cuts_, 0), {},
                                   {group, *backend, pool}));
    LOCKSTEP_RETURN_IF_ERROR(decoders.back()->Allocate(PlanBeside(), 0));
  }
  const auto progress = [&](uint64_t bytes) {
    if (options_.progress) options_.progress({bytes, plan_.file_bytes});
  };
  SliceLoader loader(*checkpoint_, group, {1}, progress, &pool);
  WeightReader reader(loader, *options_.backends.front(), pool);
  std::vector<std::vector<float>> logits(decoders.size());
  for (int64_t index = kEmbedding; index <= config_.num_hidden_layers; ++index) {
    if (options_.stop && options_.stop()) return InterruptedError();
    LOCKSTEP_ASSIGN_OR_RETURN(Part part, LoadPart(reader, config_, cuts_, index));
    for (size_t i = 0; i < decoders.size(); ++i) {
      if (i > 0) LOCKSTEP_RETURN_IF_ERROR(Repack(*options_.backends[i], &part));
      LOCKSTEP_RETURN_IF_ERROR(RunPart(*decoders[i], batch, part, index, &logits[i]));
    }
  }
  return logits;
}

}  // namespace lockstep
