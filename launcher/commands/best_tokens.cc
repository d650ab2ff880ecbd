#include "launcher/commands/best_tokens.h"

#include <algorithm>
#include <cmath>

namespace lockstep {

using Json = nlohmann::ordered_json;

void BestTokens::Note(std::span<const float> logits, int64_t first_id, int64_t rows) {
  const size_t ids = logits.size() / static_cast<size_t>(rows);
  for (size_t at = 0; at < logits.size() && rows_.size() < kMostNoted; at += ids) {
    Row row;
    row.ids = static_cast<int64_t>(ids);
    for (size_t i = 0; i < ids; ++i) {
      const double logit = logits[at + i];
      row.sum += logit;
      row.squares += logit * logit;
      if (i > 0 && logit <= row.best) {
        row.second = std::max(row.second, logit);
        continue;
      }
      if (i > 0) row.second = row.best;
      row.best = logit;
      row.token = first_id + static_cast<int64_t>(i);
    }
    if (!std::isfinite(row.squares)) row = {.token = -1, .ids = row.ids};
    rows_.push_back(row);
  }
}

Json BestTokens::ToJson() const {
  Json rows = Json::array();
  for (const Row& row : rows_)
    rows.push_back({row.token, row.best, row.second, row.sum, row.squares, row.ids});
  return rows;
}

StatusOr<Json> MergeBestTokens(const std::vector<Json>& ranks) {
  Json merged = Json::array();
  for (size_t at = 0; at < BestTokens::kMostNoted; ++at) {
    int64_t token = -1;
    double best = 0, second = -1e300, sum = 0, squares = 0, ids = 0;
    for (const Json& rank : ranks) {
      if (rank.size() <= at) continue;
      const Json& row = rank[at];
      if (row[0] == -1) return ModelError("the logits of the benchmark are not finite");
      const double here = row[1].get<double>();
      const bool better = token < 0 || here > best;
      second =
          std::max({second, row[2].get<double>(), better ? (token < 0 ? -1e300 : best) : here});
      if (better) {
        best = here;
        token = row[0].get<int64_t>();
      }
      sum += row[3].get<double>();
      squares += row[4].get<double>();
      ids += row[5].get<double>();
    }
    if (token < 0) break;
    const double mean = sum / ids;
    const double deviation = std::sqrt(std::max(squares / ids - mean * mean, 0.0));
    const double margin = deviation > 0 ? (best - second) / deviation : 0;
    merged.push_back({{"token", token}, {"margin", std::min(margin, 1e9)}});
  }
  return merged;
}

}  // namespace lockstep
