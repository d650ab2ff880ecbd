// Ranks whose kernels give other last bits, as one group: rank 0 chooses the experts for all.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/compare.h"
#include "tests/support/contrary_backend.h"
#include "tests/support/drafts.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep {
namespace {

using testing::Collected;
using testing::Golden;
using testing::Kept;
using testing::LastLogits;
using testing::OpenModel;
using testing::RelativeError;
using testing::RunRanks;
using testing::SourcePath;
using testing::TestModelOptions;

TestModelOptions OptionsFor(const std::string& model, bool share_choices) {
  TestModelOptions options;
  options.directory = SourcePath("tests/goldens/models/" + model);
  options.share_choices = share_choices;
  return options;
}

struct Case {
  std::string model;
  std::vector<std::string> kernels;  // of every rank
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.model;
  for (const std::string& kernels : c.kernels) *out << ", " << kernels;
}

std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  return testing::CaseName(info.param.model, info.index);
}

class MixedKernels : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    for (const std::string& name : GetParam().kernels) {
      const auto backend = kernels::MakeBackend(name);
      if (!backend.ok()) GTEST_SKIP() << backend.status().message();
    }
  }
};

TEST_P(MixedKernels, ComputeOneModel) {
  const Case& c = GetParam();
  const std::string family = c.model.substr(0, c.model.find('.'));
  const Golden golden(SourcePath("tests/goldens/goldens/" + family + ".safetensors"));
  const std::vector<int32_t> tokens = golden.Ids("main.input_ids");
  for (const int step : {0, 7}) {
    std::vector<Collected> ranks(c.kernels.size());
    RunRanks(static_cast<int>(c.kernels.size()), "tcp", [&](Membership&, Group& group) {
      const auto rank = static_cast<size_t>(group.rank());
      TestModelOptions options = OptionsFor(c.model, true);
      options.kernels = c.kernels[rank];
      const testing::TestModel model = OpenModel(options, group);
      ASSERT_NE(model.model, nullptr);
      ranks[rank] = testing::RunTogether(*model.model, {{tokens, 0}}, step);
    });
    EXPECT_LE(RelativeError(LastLogits(ranks, 0, -1), golden.Floats("main.logits")), 2e-5);
    for (const Collected& rank : ranks) {
      EXPECT_EQ(rank.digests, ranks[0].digests) << "ranks went different ways";
      // Each norms the same values itself.
      EXPECT_LE(RelativeError(rank.hidden[0], ranks[0].hidden[0]), 1e-6);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Models, MixedKernels,
                         ::testing::Values(Case{"tiny-a", {"cpu", "ref"}},
                                           Case{"tiny-a", {"ref", "cpu"}},
                                           Case{"tiny-b", {"cpu/avx2", "cpu/baseline", "ref"}},
                                           Case{"tiny-k", {"cpu/baseline", "cpu/avx2"}},
                                           Case{"tiny-flash", {"ref", "cpu", "cpu/baseline"}}),
                         NameOf);

// The logits of all ranks side by side, and whether their digests agree, with rank `contrary`
// choosing other experts.
struct Outcome {
  std::vector<float> logits;
  bool agree = true;
};
Outcome RunWithContrary(int contrary, bool share_choices) {
  constexpr int kRanks = 3;
  std::vector<Kept> kept(kRanks);
  RunRanks(kRanks, "tcp", [&](Membership&, Group& group) {
    TestModelOptions options = OptionsFor("tiny-b", share_choices);
    options.draft_layer = true;
    if (group.rank() == contrary) {
      options.wrap = [](std::unique_ptr<kernels::Backend> inner) {
        return std::make_unique<testing::ContraryBackend>(std::move(inner));
      };
    }
    const testing::TestModel model = OpenModel(options, group);
    ASSERT_NE(model.model, nullptr);
    const Kept step = testing::Step(*model.model, testing::RowsAt({5, 6, 7, 500, 33}, 0));
    Kept& rank = kept[static_cast<size_t>(group.rank())];
    rank = testing::Draft(*model.model, testing::RowsAt({6, 7, 500, 33, 2}, 0), step.all_hidden);
    rank.logits.insert(rank.logits.begin(), step.logits.begin(), step.logits.end());
    rank.digest ^= step.digest;
  });
  Outcome outcome;
  for (const Kept& rank : kept) {
    outcome.logits.insert(outcome.logits.end(), rank.logits.begin(), rank.logits.end());
    outcome.agree = outcome.agree && rank.digest == kept[0].digest;
  }
  return outcome;
}

TEST(SharedChoices, AreRankZerosWhateverTheOthersWouldChoose) {
  constexpr int kNobody = -1;
  const Outcome want = RunWithContrary(kNobody, false);
  ASSERT_FALSE(want.logits.empty());
  EXPECT_TRUE(want.agree);
  // Sharing alone changes no bit.
  const Outcome shared = RunWithContrary(kNobody, true);
  EXPECT_EQ(shared.logits, want.logits);
  EXPECT_TRUE(shared.agree);
  for (const int contrary : {1, 2}) {
    const Outcome apart = RunWithContrary(contrary, false);
    EXPECT_FALSE(apart.agree) << "nobody would notice";
    EXPECT_NE(apart.logits, want.logits);
    const Outcome together = RunWithContrary(contrary, true);
    EXPECT_TRUE(together.agree);
    EXPECT_EQ(together.logits, want.logits);
  }
  // What rank 0 chooses counts, right or wrong.
  const Outcome wrong = RunWithContrary(0, true);
  EXPECT_TRUE(wrong.agree);
  EXPECT_NE(wrong.logits, want.logits);
}

}  // namespace
}  // namespace lockstep
