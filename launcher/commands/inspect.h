// The part of `lockstep inspect` that is about directories made by `lockstep shard`.
#pragma once

#include "runtime/base/options.h"
#include "runtime/base/status.h"

namespace lockstep {

// Which ranks' files the directory holds, what is in them, and which are missing or of another set.
// An error after the printing if they are not one set.
Status InspectFilesOfRanks(const Options& options);

}  // namespace lockstep
