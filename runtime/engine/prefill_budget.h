// How many prompt rows a step may have beside sequences that decode, so that these wait at most a
// given time longer than without. Which rows a step has changes nobody's tokens, so a clock may
// decide it.
#pragma once

#include <cstdint>

namespace lockstep {

class PrefillBudget {
 public:
  // `bound_s` 0: always `most_rows`.
  PrefillBudget(double bound_s, int64_t most_rows);

  // For the next step. 0 now and then, so that what a step takes without prompts is known.
  int64_t rows() const;
  // A step of so many rows took that long.
  void Learn(int64_t decode_rows, int64_t prompt_rows, double seconds);

 private:
  double bound_s_;
  int64_t most_rows_;
  int64_t rows_;
  double decode_s_ = 0;  // a step without prompts, lately; 0: not known
  int64_t mixed_ = 0;    // steps with prompts since the last one without
};

}  // namespace lockstep
