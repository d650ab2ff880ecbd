// Parts of OptionTable() that stand in files of their own. For the sources of this folder.
#pragma once

#include <vector>

#include "runtime/base/options.h"

namespace lockstep {

std::vector<OptionSpec> TraceOptions();       // when requests come, and how long they are
std::vector<OptionSpec> BenchServeOptions();  // where they go

}  // namespace lockstep
