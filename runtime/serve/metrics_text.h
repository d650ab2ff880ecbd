// Metrics in Prometheus' text format, under vLLM's names where it has them, so that its dashboards
// work.
#pragma once

#include <string>

#include "runtime/engine/cluster_watch.h"
#include "runtime/engine/counts.h"
#include "runtime/engine/engine.h"

namespace lockstep {

std::string MetricsText(const std::string& model, const EngineLoad& load,
                        const EngineCounts& counts);
// What vLLM has no names for: ranks, links and the time of a decode step.
std::string ClusterMetricsText(const std::string& model, const ClusterView& view);

}  // namespace lockstep
