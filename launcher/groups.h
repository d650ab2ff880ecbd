// How a session's groups are set up, and the memory that they take.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "collectives/bootstrap.h"
#include "collectives/group.h"
#include "launcher/world.h"
#include "runtime/base/options.h"
#include "runtime/base/status.h"
#include "runtime/model/model.h"

namespace lockstep {

// With its exchanges counted in the membership's meter, and its sums as the options of its rank 0
// say. Collective.
StatusOr<std::unique_ptr<Group>> PrepareGroup(std::unique_ptr<Group> group, const Options& options,
                                              Membership& membership);

// Slots for the sums of a step, at least those of the group that is there.
size_t StepSlotBytes(const Group& group, const ModelConfig& config, const ModelLimits& limits);

// Slots of a group of one rank, over which only what is sampled goes.
inline constexpr size_t kLoneSlotBytes = size_t{64} << 10;

struct ExchangeQuestion {
  const Options& options;
  const World& world;
  const Membership& membership;
  const Group& group;  // of all ranks
};
// What the groups of a session take, and what rows pass through between the stages of a pipeline.
uint64_t ExchangeBytes(const ExchangeQuestion& question, const ModelConfig& config,
                       const ModelLimits& limits);

}  // namespace lockstep
