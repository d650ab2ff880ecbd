// How things are cut by shares: one contiguous range for each rank. What is cut - query heads,
// feed-forward columns, rows of the vocabulary - and so who holds what is decided in
// runtime/model/shape.h (docs/architecture.md, Slices). A KV head whose query heads a cut parts is
// held by both neighbours.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t size() const { return end - begin; }
  bool empty() const { return end <= begin; }
  bool operator==(const Range&) const = default;
};

// What a rank holds of a tensor: rows of a matrix, columns of all its rows, or elements of a
// vector.
enum class SliceKind : uint8_t { kRows, kColumns, kElements };

struct TensorSlice {
  SliceKind kind = SliceKind::kRows;
  Range range;
  // Nothing is nothing, wherever it begins.
  bool operator==(const TensorSlice& other) const {
    return kind == other.kind && (range == other.range || (range.empty() && other.range.empty()));
  }
};

struct SliceRequest {
  std::string name;  // of the tensor
  TensorSlice slice;
};

// Cuts [0, total) into one contiguous range per share, proportional to the shares, each boundary
// rounded to the nearest multiple of `unit` (the last is the total). Ranges may be empty. Shares
// are >= 0 and not all zero (checked by ValidateShares).
std::vector<Range> CutByShares(int64_t total, const std::vector<double>& shares, int64_t unit = 1);

// `ranks` equal shares if `shares` is empty; otherwise exactly one finite, non-negative share per
// rank.
StatusOr<std::vector<double>> ValidateShares(const std::vector<double>& shares, int ranks);

// "3,1,2"
std::string FormatShares(const std::vector<double>& shares);

// The KV heads that the query heads `query` read, each shared by `group` query heads.
Range KvHeadsOf(Range query, int64_t group);

}  // namespace lockstep
