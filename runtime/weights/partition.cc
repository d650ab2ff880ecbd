#include "runtime/weights/partition.h"

#include <algorithm>
#include <cmath>

namespace lockstep {

std::vector<Range> CutByShares(int64_t total, const std::vector<double>& shares, int64_t unit) {
  double sum = 0;
  for (const double share : shares) sum += share;
  std::vector<Range> ranges(shares.size());
  double before = 0;
  int64_t begin = 0;
  for (size_t rank = 0; rank < shares.size(); ++rank) {
    before += shares[rank];
    const bool last = rank + 1 == shares.size();
    const double units = static_cast<double>(total) / static_cast<double>(unit);
    const int64_t end =
        last ? total : std::min<int64_t>(total, unit * std::llround(units * (before / sum)));
    ranges[rank] = Range{begin, end};
    begin = end;
  }
  return ranges;
}

StatusOr<std::vector<double>> ValidateShares(const std::vector<double>& shares, int ranks) {
  if (shares.empty()) return std::vector<double>(static_cast<size_t>(ranks), 1.0);
  if (shares.size() != static_cast<size_t>(ranks)) {
    return UsageError("--shares: %d shares for %d ranks; give one per rank, for example %s",
                      shares.size(), ranks, ranks == 2 ? "--shares 3,2" : "--shares 1,1,...");
  }
  double sum = 0;
  for (const double share : shares) {
    if (!std::isfinite(share) || share < 0)
      return UsageError("--shares: %g is not a finite share >= 0", share);
    sum += share;
  }
  if (!(sum > 0) || !std::isfinite(sum))
    return UsageError("--shares: at least one share must be above 0");
  return shares;
}

std::string FormatShares(const std::vector<double>& shares) {
  std::string text;
  for (const double share : shares)
    text += (text.empty() ? "" : ",") + absl::StrFormat("%g", share);
  return text;
}

Range KvHeadsOf(Range query, int64_t group) {
  if (query.empty()) return Range{};
  return Range{query.begin / group, (query.end + group - 1) / group};
}

}  // namespace lockstep
