// What a session decides of a pipeline (--mode pipeline).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "collectives/group.h"
#include "launcher/world.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/weights/partition.h"

namespace lockstep {

// A UsageError for what a pipeline does not do, with what to do instead.
Status CheckPipeline(const Options& options);
// Whether stages can pass rows on over `link`, a value of --stage-link. Ranks of other machines are
// not reached by shm.
Status CheckStageLink(const std::string& link, bool one_machine);
Status CheckPipelineFiles(const std::string& model);

// Collective: how the stages share the layers, one value per stage, as --shares says or as the
// memory that the ranks may use. One stage has all.
StatusOr<std::vector<double>> DecideStageShares(const World& world, uint64_t memory_bytes,
                                                Group& group);

// A rank's memory by rank, of so many stages: the least of a stage's, since its ranks hold alike,
// in eighths of the largest, so that what other programs hold at the moment moves no layer.
std::vector<double> SharesByMemory(const std::vector<int64_t>& rank_bytes, int stages);

// "stage 1 of 2: layers 3 .. 5"
std::string DescribeStage(const World& world, Range layers);

}  // namespace lockstep
