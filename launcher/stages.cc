#include "launcher/stages.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <filesystem>
#include <span>
#include <system_error>

#include "runtime/weights/shard_file.h"

namespace lockstep {

Status CheckPipeline(const Options& options) {
  if (options.draft) {
    return UsageError(
        "--draft: a pipeline does not compute the draft layer; leave it out, or use --mode tensor");
  }
  if (options.recover) {
    return UsageError(
        "--recover: a pipeline ends when a rank is lost; leave it out, or use --mode tensor");
  }
  if (!options.prefix_cache_dir.empty()) {
    return UsageError(
        "--prefix-cache-dir: a pipeline keeps no cache over a restart; leave it out, or use "
        "--mode tensor");
  }
  if (options.wire != "f32") {
    return UsageError(
        "--wire %s: what it does to logits is measured in --mode tensor alone; leave it out",
        options.wire);
  }
  return OkStatus();
}

Status CheckStageLink(const std::string& link, bool one_machine) {
  if (link != "shm" || one_machine) return OkStatus();
  return UsageError(
      "--stage-link shm works only between ranks of one machine, and there are several; use "
      "--stage-link grpc or tcp");
}

Status CheckPipelineFiles(const std::string& model) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(model, error)) {
    if (entry.path().extension() != kShardSuffix) continue;
    return UsageError(
        "--model %s: files of ranks hold a strip of every layer, and a stage of a pipeline whole "
        "layers; give the checkpoint that they were made of, or use --mode tensor",
        model);
  }
  return OkStatus();
}

std::string DescribeStage(const World& world, Range layers) {
  return absl::StrFormat("stage %d of %d: layers %d .. %d", world.stage(), world.stages,
                         layers.begin, layers.end - 1);
}

StatusOr<std::vector<double>> DecideStageShares(const World& world, uint64_t memory_bytes,
                                                Group& group) {
  if (world.stages == 1) return std::vector<double>{1};
  if (!world.stage_shares.empty()) return world.stage_shares;
  const auto mine = static_cast<int64_t>(memory_bytes);
  std::vector<int64_t> all(static_cast<size_t>(group.size()));
  LOCKSTEP_RETURN_IF_ERROR(
      AllGather(group, std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all))));
  return SharesByMemory(all, world.stages);
}

std::vector<double> SharesByMemory(const std::vector<int64_t>& rank_bytes, int stages) {
  const size_t width = rank_bytes.size() / static_cast<size_t>(stages);
  std::vector<double> memory;
  for (size_t first = 0; first < rank_bytes.size(); first += width) {
    const auto begin = rank_bytes.begin() + static_cast<std::ptrdiff_t>(first);
    memory.push_back(
        static_cast<double>(*std::min_element(begin, begin + static_cast<std::ptrdiff_t>(width))));
  }
  const double most = *std::max_element(memory.begin(), memory.end());
  for (double& share : memory) share = most <= 0 ? 1 : std::max(std::round(8 * share / most), 1.0);
  return memory;
}

}  // namespace lockstep
