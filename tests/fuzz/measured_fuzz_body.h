// What tests/fuzz/measured_fuzz.cc runs on one input; a test replays the seeds through it.
#pragma once

#include <cmath>
#include <string_view>

#include "launcher/measured.h"
#include "runtime/base/check.h"

namespace lockstep {

// What is accepted is a measure or not known.
inline void FuzzMeasured(std::string_view input) {
  const StatusOr<Measured> measured = ParseMeasured(input, "fuzz");
  if (!measured.ok()) return;
  LOCKSTEP_CHECK(measured->ranks >= 0 && measured->ranks <= 1024);
  for (const planner::Figure& figure : {measured->gb_per_s, measured->tops, measured->memory_gib,
                                        measured->link.latency_us, measured->link.gb_per_s})
    LOCKSTEP_CHECK(std::isfinite(figure.value) && figure.value >= 0);
  LOCKSTEP_CHECK(measured->link.latency_us.known() == measured->link.gb_per_s.known());
}

}  // namespace lockstep
