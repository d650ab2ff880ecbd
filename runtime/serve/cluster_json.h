// What GET /cluster tells, and the cluster's part of the metrics. docs/serving.md describes both.
#pragma once

#include <string>

#include "runtime/engine/cluster_watch.h"
#include "runtime/serve/served_model.h"

namespace lockstep {

std::string ClusterJson(const ServedModel& model, const ClusterView& view);

}  // namespace lockstep
