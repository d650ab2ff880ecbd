// The forward pass against transformers' float32 results, on every kernel set and at every number
// of ranks.
#include <string>
#include <utility>
#include <vector>

#include "collectives/bootstrap.h"
#include "gtest/gtest.h"
#include "tests/support/cache_types.h"
#include "tests/support/compare.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep {
namespace {

using testing::Collected;
using testing::Golden;
using testing::LastLogits;
using testing::OpenModel;
using testing::RelativeError;
using testing::RunRanks;
using testing::RunTogether;
using testing::Sequence;
using testing::SourcePath;
using testing::TestModel;
using testing::TestModelOptions;

struct Case {
  std::string model;
  std::string kernels;
  int ranks;
  std::vector<double> shares;
  std::string collective = "tcp";
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.model << ", " << c.kernels; }

std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  return testing::CaseName(c.model + "_" + c.kernels + "_" + std::to_string(c.ranks) + "_" +
                               c.collective + (c.shares.empty() ? "_even" : "_uneven"),
                           info.index);
}

class GoldenModel : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const auto backend = kernels::MakeBackend(GetParam().kernels);
    if (!backend.ok()) GTEST_SKIP() << backend.status().message();
  }

  // Runs `sequences` on all ranks; returns per rank what it collected.
  std::vector<Collected> Run(const std::vector<Sequence>& sequences, int step) {
    const Case& c = GetParam();
    std::vector<Collected> results(static_cast<size_t>(c.ranks));
    RunRanks(c.ranks, c.collective, [&](Membership&, Group& group) {
      TestModelOptions options;
      options.directory = SourcePath("tests/goldens/models/" + c.model);
      options.kernels = c.kernels;
      options.shares = c.shares;
      TestModel model = OpenModel(options, group);
      ASSERT_NE(model.model, nullptr);
      results[static_cast<size_t>(group.rank())] = RunTogether(*model.model, sequences, step);
    });
    return results;
  }

  double Tolerance() const { return GetParam().kernels == "ref" ? 1e-5 : 2e-5; }
};

TEST_P(GoldenModel, LogitsAndHiddenStatesAgreeWithTransformers) {
  const Golden golden(SourcePath("tests/goldens/goldens/" + GetParam().model + ".safetensors"));
  const std::vector<Sequence> sequences = {{golden.Ids("main.input_ids"), 0}};
  const auto ranks = Run(sequences, 0);
  EXPECT_LE(RelativeError(LastLogits(ranks, 0, -1), golden.Floats("main.logits")), Tolerance());
  EXPECT_LE(RelativeError(ranks[0].hidden[0], golden.Floats("main.hidden.final_norm")),
            Tolerance());
  for (const Collected& rank : ranks) {
    EXPECT_EQ(rank.hidden, ranks[0].hidden) << "ranks hold different bits";
    EXPECT_EQ(rank.digests, ranks[0].digests);
  }
}

TEST_P(GoldenModel, ALongPromptAgreesWithTransformersAtItsEnd) {
  const Golden golden(SourcePath("tests/goldens/goldens/" + GetParam().model + ".safetensors"));
  const std::vector<Sequence> sequences = {{golden.Ids("long.input_ids"), 0}};
  const auto last = LastLogits(Run(sequences, 100), 0, 1);
  EXPECT_LE(RelativeError(last, golden.Floats("long.last_logits")), Tolerance());
}

TEST_P(GoldenModel, StepsAndBatchesChangeNoBit) {
  const Golden golden(SourcePath("tests/goldens/goldens/" + GetParam().model + ".safetensors"));
  std::vector<Sequence> together;
  for (int b = 0; b < 3; ++b) {
    together.push_back({golden.Ids("batch." + std::to_string(b) + ".input_ids"), b * 40});
  }
  const auto batched = Run(together, 0);
  for (const int step : {1, 3, 7}) {
    const auto stepped = Run(together, step);
    for (size_t rank = 0; rank < batched.size(); ++rank) {
      EXPECT_EQ(stepped[rank].logits, batched[rank].logits) << "step " << step << " rank " << rank;
    }
  }
  for (size_t b = 0; b < together.size(); ++b) {
    const auto alone = Run({together[b]}, 0);
    for (size_t rank = 0; rank < batched.size(); ++rank) {
      EXPECT_EQ(alone[rank].logits[0], batched[rank].logits[b])
          << "sequence " << b << " rank " << rank;
    }
    EXPECT_LE(RelativeError(LastLogits(alone, 0, 1),
                            golden.Floats("batch." + std::to_string(b) + ".last_logits")),
              Tolerance());
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const char* model : {"tiny-a", "tiny-b", "tiny-k"}) {
    cases.push_back({model, "ref", 1, {}});
    cases.push_back({model, "cpu", 1, {}});
    for (const int ranks : {2, 3, 4, 5}) cases.push_back({model, "cpu", ranks, {}});
    cases.push_back({model, "cpu/avx2", 2, {3, 2}, "shm"});
    cases.push_back({model, "cpu/baseline", 3, {5, 1, 2}});
    cases.push_back({model, "ref", 2, {1, 4}});
    cases.push_back({model, "cpu", 3, {1, 0, 1}});
    cases.push_back({model, "cpu", 5, {0.1, 1, 3, 0.2, 1}, "shm"});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, GoldenModel, ::testing::ValuesIn(Cases()), NameOf);

TEST(KvCache, TypesKeepNearTheReferenceAndChangeNoBitByStep) {
  testing::CheckCacheTypes("tiny-a", -1);
}

}  // namespace
}  // namespace lockstep
