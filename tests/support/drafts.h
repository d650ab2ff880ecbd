// Steps of the draft layer for tests: rows of one sequence, and what came out of them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/model/model.h"
#include "tests/support/compare.h"

namespace lockstep::testing {

// Tokens at positions first, first + 1, ... of one sequence, all of them outputs.
inline Batch RowsAt(const std::vector<int32_t>& tokens, int32_t first) {
  Batch batch;
  batch.tokens = tokens;
  for (size_t i = 0; i < tokens.size(); ++i) {
    batch.positions.push_back(first + static_cast<int32_t>(i));
    batch.sequences.push_back(0);
    batch.output_rows.push_back(static_cast<int32_t>(i));
  }
  batch.block_tables = {{7, 2, 5, 11}};  // 64 positions
  return batch;
}

// What a step gave on one rank, kept beyond the next one.
struct Kept {
  std::vector<float> logits, hidden, all_hidden;
  uint64_t digest = 0;

  explicit Kept(const StepOutput& output)
      : logits(output.logits.begin(), output.logits.end()),
        hidden(output.hidden.begin(), output.hidden.end()),
        all_hidden(output.all_hidden.begin(), output.all_hidden.end()),
        digest(output.digest) {}
  Kept() = default;
  bool operator==(const Kept& other) const = default;
};

inline Kept Step(Model& model, const Batch& batch) {
  const auto output = model.Step(batch);
  EXPECT_TRUE(output.ok()) << output.status();
  return output.ok() ? Kept(*output) : Kept();
}

inline Kept Draft(Model& model, const Batch& batch, std::span<const float> hidden) {
  const auto output = model.Draft(batch, hidden);
  EXPECT_TRUE(output.ok()) << output.status();
  return output.ok() ? Kept(*output) : Kept();
}

}  // namespace lockstep::testing
