// Quantized checkpoints of every family against float32 results over the same dequantized weights,
// at every number of ranks.
#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/sequences.h"

namespace lockstep {
namespace {

using testing::Golden;
using testing::OpenModel;
using testing::RunRanks;
using testing::RunTogether;
using testing::SourcePath;
using testing::TestModel;
using testing::TestModelOptions;

constexpr double kTolerance = 2e-5;  // of the largest logit
constexpr size_t kLastRows = 12;
constexpr size_t kGreedyPrompt = 12;

struct Case {
  std::string file;
  std::string kernels;
  std::vector<double> shares;  // one per rank
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.file << ", " << c.kernels; }

std::string NameOf(const ::testing::TestParamInfo<Case>& info) {
  std::string name = info.param.file + "_" + info.param.kernels + "_" +
                     std::to_string(info.param.shares.size()) + "_" + std::to_string(info.index);
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); },
      '_');
  return name;
}

class QuantizedGolden : public ::testing::TestWithParam<Case> {
 protected:
  QuantizedGolden() : golden_(SourcePath("tests/goldens/goldens/quantized.safetensors")) {
    const std::string& file = GetParam().file;
    key_ = file + (file.ends_with("-fp8") ? ".weight_only" : "");
    input_ = golden_.Ids(file.substr(0, 6) + ".input_ids");
  }
  void SetUp() override {
    const auto backend = kernels::MakeBackend(GetParam().kernels);
    if (!backend.ok()) GTEST_SKIP() << backend.status().message();
  }

  // body(model, rank) on every rank.
  void OnRanks(const std::function<void(Model&, size_t)>& body,
               kernels::Precision precision = kernels::Precision::kExact, int threads = 1) const {
    RunRanks(static_cast<int>(GetParam().shares.size()), "tcp", [&](Membership&, Group& group) {
      TestModelOptions options;
      options.directory = SourcePath("tests/goldens/models/" + GetParam().file);
      options.kernels = GetParam().kernels;
      options.shares = GetParam().shares;
      options.precision = precision;
      options.threads = threads;
      options.limits = {.max_rows = 64, .max_outputs = 64, .max_model_len = 64, .kv_blocks = 16};
      TestModel model = OpenModel(options, group);
      ASSERT_NE(model.model, nullptr);
      body(*model.model, static_cast<size_t>(group.rank()));
    });
  }

  Golden golden_;
  std::string key_;
  std::vector<int32_t> input_;
};

TEST_P(QuantizedGolden, LogitsAgreeWithTheReference) {
  std::vector<std::vector<float>> slices(GetParam().shares.size());
  OnRanks([&](Model& model, size_t rank) {
    slices[rank] = RunTogether(model, {{input_, 0}}, 0).logits[0];
  });
  const std::vector<float> want = golden_.Floats(key_ + ".logits_last12");
  std::vector<float> got;
  for (size_t row = input_.size() - kLastRows; row < input_.size(); ++row) {
    for (const auto& slice : slices) {
      const size_t width = slice.size() / input_.size();
      got.insert(got.end(), slice.begin() + static_cast<int64_t>(row * width),
                 slice.begin() + static_cast<int64_t>((row + 1) * width));
    }
  }
  ASSERT_EQ(got.size(), want.size());
  double largest = 0, difference = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    ASSERT_TRUE(std::isfinite(got[i])) << i;
    largest = std::max(largest, std::fabs(double{want[i]}));
    difference = std::max(difference, std::fabs(double{got[i]} - want[i]));
  }
  EXPECT_LE(difference / largest, kTolerance);
}

// The token with the largest logit of a sequence's last row, over all ranks' slices.
int32_t Best(const std::vector<std::vector<float>>& slices, size_t rows) {
  float best = -INFINITY;
  int32_t token = 0, index = 0;
  for (const auto& slice : slices) {
    const size_t width = slice.size() / rows;
    for (size_t i = slice.size() - width; i < slice.size(); ++i, ++index) {
      if (slice[i] > best) {
        best = slice[i];
        token = index;
      }
    }
  }
  return token;
}

TEST_P(QuantizedGolden, GreedyTokensAreThoseOfTheReference) {
  std::vector<int32_t> tokens(input_.begin(), input_.begin() + kGreedyPrompt);
  const std::vector<int32_t> want = golden_.Ids(key_ + ".greedy16");
  // All steps at once: the reference's tokens are fed, and each must be the best after the last.
  tokens.insert(tokens.end(), want.begin(), want.end() - 1);
  std::vector<std::vector<float>> slices(GetParam().shares.size());
  OnRanks([&](Model& model, size_t rank) {
    slices[rank] = RunTogether(model, {{tokens, 0}}, 0).logits[0];
  });
  for (size_t step = 0; step < want.size(); ++step) {
    std::vector<std::vector<float>> until;
    const size_t rows = kGreedyPrompt + step;
    for (const auto& slice : slices) {
      const size_t width = slice.size() / tokens.size();
      until.emplace_back(slice.begin(), slice.begin() + static_cast<int64_t>(rows * width));
    }
    EXPECT_EQ(Best(until, rows), want[step]) << "step " << step;
  }
}

// In both precisions: blocks of 8-bit activations are a row's own.
class QuantizedBits : public QuantizedGolden {};
TEST_P(QuantizedBits, StepsBatchesAndThreadsChangeNoBit) {
  const std::vector<int32_t> other(input_.rbegin(), input_.rend());
  for (const auto precision : {kernels::Precision::kExact, kernels::Precision::kFast}) {
    if (!kernels::MakeBackend(GetParam().kernels, precision).ok()) continue;
    std::vector<std::vector<float>> whole(GetParam().shares.size());
    OnRanks(
        [&](Model& model, size_t rank) {
          whole[rank] = RunTogether(model, {{input_, 0}}, 0).logits[0];
          for (const int step : {1, 5}) {
            EXPECT_EQ(RunTogether(model, {{input_, 0}}, step).logits[0], whole[rank]) << step;
          }
          EXPECT_EQ(RunTogether(model, {{other, 8}, {input_, 0}}, 6).logits[1], whole[rank]);
        },
        precision);
    OnRanks(
        [&](Model& model, size_t rank) {
          EXPECT_EQ(RunTogether(model, {{input_, 0}}, 0).logits[0], whole[rank]) << "3 threads";
        },
        precision, 3);
  }
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const char* file :
       {"tiny-a-F16.gguf", "tiny-a-Q4_0.gguf", "tiny-a-Q8_0.gguf", "tiny-a-fp8", "tiny-a-mlx8",
        "tiny-b-Q8_0.gguf", "tiny-k-Q4_K_M.gguf", "tiny-k-mlx4"}) {
    cases.push_back({file, "ref", {1}});
    cases.push_back({file, "ref", {1, 4}});
    cases.push_back({file, "cpu", {1}});
    cases.push_back({file, "cpu", {1, 1}});
    cases.push_back({file, "cpu", {5, 1, 2}});
    cases.push_back({file, "cpu", {1, 1, 0, 1}});
    cases.push_back({file, "cpu", {1, 1, 1, 1, 1}});
  }
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, QuantizedGolden, ::testing::ValuesIn(Cases()), NameOf);

std::vector<Case> UnevenCases() {
  std::vector<Case> cases = Cases();
  std::erase_if(cases, [](const Case& c) { return c.shares != std::vector<double>{5, 1, 2}; });
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Models, QuantizedBits, ::testing::ValuesIn(UnevenCases()), NameOf);

}  // namespace
}  // namespace lockstep
