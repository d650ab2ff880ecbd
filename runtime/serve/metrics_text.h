// Metrics in Prometheus' text format, under vLLM's names where it has them, so that its dashboards
// work.
#pragma once

#include <string>

#include "runtime/engine/counts.h"
#include "runtime/engine/engine.h"

namespace lockstep {

std::string MetricsText(const std::string& model, const EngineLoad& load,
                        const EngineCounts& counts);

}  // namespace lockstep
