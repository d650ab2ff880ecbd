// What `lockstep doctor` and `lockstep bench` measured of a cluster, in place of what is published.
#pragma once

#include <string>
#include <string_view>

#include "runtime/base/status.h"
#include "runtime/planner/hardware.h"

namespace lockstep {

// Of each figure the last one that the text has; what it has nothing of is not known.
struct Measured {
  int ranks = 0;               // of the last line that says so
  planner::Figure gb_per_s;    // that a rank reads while all read
  planner::Figure tops;        // of a rank, at its peak
  planner::Figure memory_gib;  // of the node with the least, less what is kept back for others
  planner::Link link;          // the slowest of the transport that doctor would use
};

// `text` has lines as these commands print them with --json, in any order; `name` stands for the
// file in errors. A line that is none of these is an error.
StatusOr<Measured> ParseMeasured(std::string_view text, const std::string& name);

// Puts what is known over `hardware`.
void Apply(const Measured& measured, planner::Hardware* hardware);

}  // namespace lockstep
