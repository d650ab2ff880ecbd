// Steps in two halves, of which one is exchanged while the other is computed, have the bits of
// steps that are computed whole.
#include <gtest/gtest.h>

#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep {
namespace {

using testing::OpenModel;
using testing::RunRanks;

struct Case {
  std::string model;
  std::vector<double> shares;
  WireFormat wire = WireFormat::kF32;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model << ", " << c.shares.size() << " ranks, sums as " << NameOf(c.wire);
}

class Overlap : public ::testing::TestWithParam<Case> {};

// Two prompts and a token, in steps of which some are cut through the middle of a prompt.
std::vector<testing::Sequence> Sequences() {
  std::vector<testing::Sequence> sequences = {{std::vector<int32_t>(75), 0, 0},
                                              {std::vector<int32_t>(40), 10, 0},
                                              {std::vector<int32_t>(1), 20, 0}};
  for (size_t s = 0; s < sequences.size(); ++s) {
    for (size_t i = 0; i < sequences[s].tokens.size(); ++i)
      sequences[s].tokens[i] = static_cast<int32_t>((i * 7 + s * 31) % 200);
  }
  return sequences;
}

TEST_P(Overlap, HasTheBitsOfWholeSteps) {
  const Case& c = GetParam();
  RunRanks(static_cast<int>(c.shares.size()), "tcp", [&](Membership&, Group& group) {
    testing::TestModelOptions options;
    options.directory = testing::SourcePath("tests/goldens/models/" + c.model);
    options.shares = c.shares;
    options.threads = 2;
    testing::TestModel opened = OpenModel(options, group);
    ASSERT_NE(opened.model, nullptr);
    opened.model->SetWire(c.wire);
    for (const int step : {0, 23, 1}) {
      opened.model->SetOverlap(0);
      const testing::Collected whole = testing::RunTogether(*opened.model, Sequences(), step);
      // 3 rows have halves of unequal length; a step of one row cannot be parted.
      opened.model->SetOverlap(1);
      const testing::Collected halves = testing::RunTogether(*opened.model, Sequences(), step);
      ASSERT_FALSE(whole.hidden[0].empty());
      EXPECT_EQ(halves.logits, whole.logits) << step;
      EXPECT_EQ(halves.hidden, whole.hidden) << step;
      // The digest takes the router's choices in the order in which they were made: it tells that
      // there were halves. A rank alone exchanges nothing, and the last layer is never parted.
      const ModelConfig& config = opened.model->config();
      const bool shows = group.size() > 1 && !config.is_dense(config.num_hidden_layers - 2);
      if (step == 0) {
        EXPECT_EQ(halves.digests != whole.digests, shows);
      }
    }
  });
}

INSTANTIATE_TEST_SUITE_P(
    Models, Overlap,
    ::testing::Values(Case{"tiny-a", {1}}, Case{"tiny-a", {1, 1}}, Case{"tiny-a", {3, 1, 2}},
                      Case{"tiny-a", {1, 1}, WireFormat::kInt8}, Case{"tiny-b", {1, 0, 2}},
                      Case{"tiny-k-Q4_K_M.gguf", {2, 1}}, Case{"tiny-flash", {1, 1}},
                      Case{"tiny-flash", {3, 1, 2}}));

}  // namespace
}  // namespace lockstep
