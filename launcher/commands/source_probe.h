// The probe prompt of a whole checkpoint (launcher/probe.h), for those who see all of it.
#pragma once

#include <optional>
#include <string>

#include "launcher/probe.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/model/probe.h"
#include "runtime/weights/checkpoint.h"

namespace lockstep {

// Computes it within the memory that this process may use, with progress on stderr. Of `question`
// the formats, the settings and the most threads count. Nothing, and why, in *too_large, if a layer
// does not fit.
StatusOr<std::optional<ProbeRecord>> ProbeSource(const Checkpoint& source, ProbeQuestion question,
                                                 const Options& options, std::string* too_large);

}  // namespace lockstep
