// What must be equal before ranks compute together, and what cannot be asked of them at once.
#pragma once

#include <string>
#include <vector>

#include "collectives/bootstrap.h"
#include "launcher/world.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/kernels/backend.h"

namespace lockstep {

// That no two options contradict each other in what ranks do together.
Status CheckTogether(const Options& options);

// `kernels`: the backend's name, `precision` what it was made for. The model is compared after
// joining, so that a rank that cannot read it can say why.
std::vector<Setting> SettingsOf(const Options& options, const World& world,
                                const std::string& kernels, kernels::Precision precision);

}  // namespace lockstep
