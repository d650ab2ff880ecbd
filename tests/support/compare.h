// What tests of models share: distances from a reference, the ranks' slices side by side, and names
// of cases.
#pragma once

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/sequences.h"

namespace lockstep::testing {

// Largest difference, relative to the largest reference value.
inline double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  EXPECT_EQ(got.size(), want.size());
  if (got.size() != want.size()) return INFINITY;
  double largest = 0, difference = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    largest = std::max(largest, std::fabs(double{want[i]}));
    difference = std::max(difference, std::fabs(double{got[i]} - want[i]));
    if (std::isnan(got[i])) return INFINITY;
  }
  return difference / largest;
}

// The last `keep` (-1: all) of the `rows` rows that every rank has a slice of: [keep, vocab].
inline std::vector<float> JoinSlices(const std::vector<const std::vector<float>*>& slices,
                                     int64_t rows, int64_t keep = -1) {
  std::vector<float> whole;
  for (int64_t row = keep < 0 ? 0 : rows - keep; row < rows; ++row) {
    for (const std::vector<float>* slice : slices) {
      const int64_t width = static_cast<int64_t>(slice->size()) / rows;
      whole.insert(whole.end(), slice->begin() + row * width, slice->begin() + (row + 1) * width);
    }
  }
  return whole;
}

// The logits of a sequence's last `keep` rows (-1: all), whole.
inline std::vector<float> LastLogits(const std::vector<Collected>& ranks, size_t sequence,
                                     int64_t keep) {
  std::vector<const std::vector<float>*> slices;
  for (const Collected& rank : ranks) slices.push_back(&rank.logits[sequence]);
  const auto values = static_cast<int64_t>(ranks[0].hidden[sequence].size());
  return JoinSlices(slices, values / ranks[0].hidden_size, keep);
}

// A name that gtest accepts.
inline std::string CaseName(std::string text, size_t index) {
  text += "_" + std::to_string(index);
  std::replace_if(
      text.begin(), text.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); },
      '_');
  return text;
}

}  // namespace lockstep::testing
