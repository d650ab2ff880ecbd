// A link that delivers later, to measure what a slower network would cost: around any link, by the
// clock. What is measured over it says that the latency is added.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "runtime/base/clock.h"
#include "transport/link.h"

namespace lockstep {

// How long what a rank sends is held back before it leaves, however long the link itself takes.
// Latency alone: what follows waits as long and not in turn, so that no bandwidth is taken away.
// Any thread; counts for what is sent from then on.
struct AddedLatency {
  std::atomic<int64_t> ns{0};
};

// Puts and messages leave `latency` after they were asked for, in their order. That takes polls
// (LinkTraits::puts_need_polls, unless the latency is 0), so a rank ends no exchange before its
// latency has passed. `latency` and `clock` belong to whoever made them; the clock outlives it.
std::unique_ptr<Link> MakeDelayedLink(std::unique_ptr<Link> inner,
                                      std::shared_ptr<const AddedLatency> latency,
                                      const Clock& clock = Clock::Real());

}  // namespace lockstep
