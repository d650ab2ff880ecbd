// What the commands that compute in a pipeline share (--mode pipeline).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "launcher/session.h"
#include "runtime/base/status.h"
#include "runtime/engine/pipeline.h"
#include "runtime/engine/stage_link.h"

namespace lockstep {

std::vector<std::string> RankNames(Session& session);

PipelineOptions PipelineOptionsOf(Session& session);

// Collective: connects this rank's stage with its neighbours, as --stage-link says. What stops one
// rank stops all.
StatusOr<std::unique_ptr<StageLink>> OpenStageLink(Session& session);

// How many chunks of a prompt a step takes where no sequence decodes: 1 without stages. Beside
// sequences that decode it is as many as stages.
int64_t ChunksOfStep(const Session& session);
// Rows that a step's plan may have.
int64_t PlanRowsOf(Session& session);

}  // namespace lockstep
