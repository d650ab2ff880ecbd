// What must be equal before ranks compute together.
#pragma once

#include <string>
#include <vector>

#include "collectives/bootstrap.h"
#include "launcher/world.h"
#include "runtime/base/options.h"

namespace lockstep {

// `kernels`: the backend's name. The model is compared after joining, so that a rank that cannot
// read it can say why.
std::vector<Setting> SettingsOf(const Options& options, const World& world,
                                const std::string& kernels);

}  // namespace lockstep
