// Which tokens a model would have chosen in a benchmark, and how clearly, so that ways of dividing
// the model can be compared by what they compute.
#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

// Of one rank: what its rows of the vocabulary offer, for the first kMostNoted output rows.
class BestTokens {
 public:
  static constexpr size_t kMostNoted = 64;

  void Clear() { rows_.clear(); }
  // `logits` are [rows, ids] of the ids from `first_id` on, at least one.
  void Note(std::span<const float> logits, int64_t first_id, int64_t rows);
  nlohmann::ordered_json ToJson() const;

 private:
  struct Row {
    int64_t token = 0;       // its best one, the lowest of equal ones; -1: some are not finite
    double best = 0;         // logits
    double second = -1e300;  // of another token
    double sum = 0, squares = 0;
    int64_t ids = 0;
  };
  std::vector<Row> rows_;
};

// What all ranks noted together, by rank: [{"token": 17, "margin": 0.4}, ...], by row. The margin
// is how far the second best logit is below, in standard deviations of the row's logits. Ranks that
// noted nothing hold no rows of the vocabulary. An error where logits are not finite.
StatusOr<nlohmann::ordered_json> MergeBestTokens(const std::vector<nlohmann::ordered_json>& ranks);

}  // namespace lockstep
