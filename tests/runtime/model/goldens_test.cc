// The forward pass against transformers' float32 results, on every kernel set and at every number
// of ranks.
#include <algorithm>
#include <cmath>
#include <mutex>
#include <string>
#include <tuple>
#include <vector>

#include "collectives/bootstrap.h"
#include "gtest/gtest.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep {
namespace {

using testing::Collected;
using testing::Golden;
using testing::OpenModel;
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

std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  std::string name = info.param.model + "_" + info.param.kernels + "_" +
                     std::to_string(info.param.ranks) + "_" + info.param.collective +
                     (info.param.shares.empty() ? "_even" : "_uneven");
  name += std::to_string(info.index);
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); },
      '_');
  return name;
}

// Largest difference, relative to the largest reference value.
double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
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

// Puts the ranks' vocabulary slices side by side: [n, vocab].
std::vector<float> Join(const std::vector<std::vector<float>>& slices, int64_t rows) {
  std::vector<float> whole;
  for (int64_t row = 0; row < rows; ++row) {
    for (const auto& slice : slices) {
      const int64_t width = static_cast<int64_t>(slice.size()) / rows;
      whole.insert(whole.end(), slice.begin() + row * width, slice.begin() + (row + 1) * width);
    }
  }
  return whole;
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

  static std::vector<float> Logits(const std::vector<Collected>& ranks, size_t sequence,
                                   int64_t rows) {
    std::vector<std::vector<float>> slices;
    for (const Collected& rank : ranks) slices.push_back(rank.logits[sequence]);
    return Join(slices, rows);
  }

  double Tolerance() const { return GetParam().kernels == "ref" ? 1e-5 : 2e-5; }
};

TEST_P(GoldenModel, LogitsAndHiddenStatesAgreeWithTransformers) {
  const Golden golden(SourcePath("tests/goldens/goldens/" + GetParam().model + ".safetensors"));
  const std::vector<Sequence> sequences = {{golden.Ids("main.input_ids"), 0}};
  const auto ranks = Run(sequences, 0);
  const auto rows = static_cast<int64_t>(sequences[0].tokens.size());
  EXPECT_LE(RelativeError(Logits(ranks, 0, rows), golden.Floats("main.logits")), Tolerance());
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
  const auto rows = static_cast<int64_t>(sequences[0].tokens.size());
  const auto all = Logits(Run(sequences, 100), 0, rows);
  const auto want = golden.Floats("long.last_logits");
  EXPECT_LE(RelativeError(
                std::vector<float>(all.end() - static_cast<int64_t>(want.size()), all.end()), want),
            Tolerance());
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
    const auto rows = static_cast<int64_t>(together[b].tokens.size());
    for (size_t rank = 0; rank < batched.size(); ++rank) {
      EXPECT_EQ(alone[rank].logits[0], batched[rank].logits[b])
          << "sequence " << b << " rank " << rank;
    }
    const auto all = Logits(alone, 0, rows);
    const auto want = golden.Floats("batch." + std::to_string(b) + ".last_logits");
    EXPECT_LE(
        RelativeError(std::vector<float>(all.end() - static_cast<int64_t>(want.size()), all.end()),
                      want),
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

}  // namespace
}  // namespace lockstep
