#include "runtime/engine/prefill_budget.h"

#include <algorithm>

namespace lockstep {
namespace {

// Prompts go on whatever the bound.
constexpr int64_t kFewestRows = 16;
// Steps with prompts between two without.
constexpr int64_t kMixedSteps = 32;

}  // namespace

PrefillBudget::PrefillBudget(double bound_s, int64_t most_rows)
    : bound_s_(bound_s),
      most_rows_(most_rows),
      rows_(bound_s > 0 ? std::min(kFewestRows, most_rows) : most_rows) {}

int64_t PrefillBudget::rows() const {
  const bool measure = bound_s_ > 0 && (decode_s_ == 0 || mixed_ >= kMixedSteps);
  return measure ? 0 : rows_;
}

// Rows do not cost alike: the first of a step reads experts that the others then have for nothing.
// So no price of a row is assumed. What a step took longer, against the bound, says whether the
// next one may have more or fewer rows, at most twice or half as many; that settles where the step
// takes as long as it may.
void PrefillBudget::Learn(int64_t decode_rows, int64_t prompt_rows, double seconds) {
  if (bound_s_ <= 0 || decode_rows == 0) return;
  if (prompt_rows == 0) {
    decode_s_ = decode_s_ == 0 ? seconds : 0.75 * decode_s_ + 0.25 * seconds;
    mixed_ = 0;
    return;
  }
  ++mixed_;
  const double added = std::max(seconds - decode_s_, 1e-9);
  // A short prompt in a step that could have had more says little about longer ones.
  if (added <= bound_s_ && prompt_rows < rows_) return;
  const double wanted = static_cast<double>(prompt_rows) * std::min(bound_s_ / added, 2.0);
  const int64_t fewest = std::min(std::max(kFewestRows, rows_ / 2), most_rows_);
  rows_ = std::clamp(static_cast<int64_t>(wanted), fewest, most_rows_);
}

}  // namespace lockstep
