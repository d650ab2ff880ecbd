// What `lockstep doctor` and `lockstep bench` measured of a cluster, in place of what is published.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/status.h"
#include "runtime/planner/hardware.h"

namespace lockstep {

// One test of `lockstep bench decode` or `bench prefill`.
struct MeasuredTest {
  bool decode = false;
  int ranks = 1;
  double tokens = 0;        // of the prompt, or that each sequence decodes
  double context = 0;       // decode: before these
  double batch = 1;         // decode: sequences together
  double chunk = 256;       // prefill: most rows in one step
  double tokens_per_s = 0;  // of all sequences together
};

// Of each figure the last one that the text has; what it has nothing of is not known.
struct Measured {
  int ranks = 0;             // of the last line that says so
  planner::Figure gb_per_s;  // that a rank reads while all read
  planner::Figure tops;      // of a rank, at its peak
  // Of the rank with the least, less what is kept back for others; ranks of one host divide it.
  planner::Figure memory_gib;
  bool memory_is_divided = true;    // false: the lines do not say which ranks are on one host
  planner::Link link;               // the slowest of the transport that doctor would use
  std::vector<MeasuredTest> tests;  // all of them
};

// `text` has lines as these commands print them with --json, in any order; `name` stands for the
// file in errors. A line that is none of these is an error.
StatusOr<Measured> ParseMeasured(std::string_view text, const std::string& name);

// Puts what is known over `hardware`. Bandwidth and arithmetic, which no program reaches as
// datasheets have them, stay as they are if the shares of `engine` are of datasheets' figures; of
// memory that ranks may have to divide the smaller figure counts.
void Apply(const Measured& measured, const planner::Engine& engine, planner::Hardware* hardware);

}  // namespace lockstep
