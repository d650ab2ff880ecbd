// Every backend against `ref`, on random inputs of awkward shapes, and the promise that rows do not
// see each other.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/kernels/backend.h"
#include "tests/support/golden.h"
#include "tests/support/kernels.h"

namespace lockstep::kernels {
namespace {

using testing::BackendName;
using testing::Difference;
using testing::Random;

using Kernels = testing::BackendTest;

HostMatrix RandomMatrix(std::mt19937_64& random, DType type, int64_t count, int64_t outputs,
                        int64_t inputs) {
  HostMatrix matrix = HostMatrix::Allocate(type, count, outputs, inputs, "test").value();
  std::normal_distribution<float> normal(0, 1);
  const int64_t size = count * outputs * inputs;
  for (int64_t i = 0; i < size; ++i) {
    const float value = normal(random);
    if (type == DType::kF32) {
      matrix.data.as<float>()[i] = value;
    } else if (type == DType::kBF16) {
      matrix.data.as<uint16_t>()[i] = FloatToBf16(value);
    } else {
      matrix.data.as<uint16_t>()[i] =
          static_cast<uint16_t>(random() % 0x7c00) | (random() % 2 ? 0x8000 : 0);
    }
  }
  return matrix;
}

HostMatrix Copy(const HostMatrix& from) {
  HostMatrix to =
      HostMatrix::Allocate(from.format, from.count, from.outputs, from.inputs, "test").value();
  std::memcpy(to.data.data(), from.data.data(), from.data.bytes());
  return to;
}

TEST_P(Kernels, MatMulAgreesWithRefForEveryTypeAndShape) {
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (const auto& [rows, outputs, inputs] : {std::tuple{1, 1, 1},
                                                {1, 33, 128},
                                                {3, 17, 19},
                                                {5, 9, 160},
                                                {37, 70, 96},
                                                {70, 5, 515},
                                                {2, 0, 8},
                                                {4, 6, 0}}) {
      const HostMatrix source = RandomMatrix(random_, type, 1, outputs, inputs);
      const auto mine = backend_->Pack(Copy(source)).value();
      const auto theirs = ref_->Pack(Copy(source)).value();
      const auto x = Random(random_, rows * inputs);
      const auto bias = Random(random_, outputs);
      std::vector<float> got(static_cast<size_t>(rows * outputs), NAN), want(got.size());
      backend_->MatMul(queue_, *mine, bias.data(), x.data(), rows, got.data(), outputs);
      ref_->MatMul(queue_, *theirs, bias.data(), x.data(), rows, want.data(), outputs);
      EXPECT_LE(Difference(got, want, bias), 2e-6)
          << NameOf(type) << " " << rows << "x" << outputs << "x" << inputs;
      // One row alone, by one thread: the same bits.
      for (int row = 0; row < rows; ++row) {
        std::vector<float> alone(static_cast<size_t>(outputs));
        backend_->MatMul(single_, *mine, bias.data(), x.data() + row * inputs, 1, alone.data(),
                         outputs);
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), got.begin() + row * outputs))
            << "row " << row;
      }
    }
  }
}

TEST_P(Kernels, RmsNormAgreesWithRef) {
  for (const int64_t dim : {1, 7, 16, 64, 100, 5120}) {
    const int64_t rows = 5;
    const auto x = Random(random_, rows * dim, 3);
    const auto weight = Random(random_, dim);
    std::vector<float> got(static_cast<size_t>(rows * dim)), want(got.size());
    backend_->RmsNorm(queue_, x.data(), weight.data(), 1e-5, rows, dim, got.data());
    ref_->RmsNorm(queue_, x.data(), weight.data(), 1e-5, rows, dim, want.data());
    EXPECT_LE(Difference(got, want), 1e-6) << dim;
    auto mine = x, theirs = x;
    const auto delta = Random(random_, rows * dim);
    backend_->AddRmsNorm(queue_, mine.data(), delta.data(), weight.data(), 1e-5, rows, dim,
                         got.data());
    ref_->AddRmsNorm(queue_, theirs.data(), delta.data(), weight.data(), 1e-5, rows, dim,
                     want.data());
    EXPECT_LE(Difference(got, want), 1e-6) << dim;
    EXPECT_EQ(mine, theirs);
  }
}

TEST_P(Kernels, SiluMulAgreesWithRefAlsoAtTheEnds) {
  const int64_t rows = 3, columns = 37;
  auto gate_up = Random(random_, rows * 2 * columns, 4);
  gate_up[0] = -200;
  gate_up[1] = 200;
  gate_up[2] = 0;
  std::vector<float> got(static_cast<size_t>(rows * columns)), want(got.size());
  backend_->SiluMul(queue_, gate_up.data(), rows, columns, got.data());
  ref_->SiluMul(queue_, gate_up.data(), rows, columns, want.data());
  EXPECT_LE(Difference(got, want), 1e-6);
  for (size_t i = 0; i < want.size(); ++i)
    EXPECT_NEAR(got[i], want[i], 1e-6 * std::fabs(want[i]) + 1e-30) << i;
}

TEST_P(Kernels, EmbeddingTakesOwnRowsAndLeavesTheOthersZero) {
  const HostMatrix source = RandomMatrix(random_, DType::kBF16, 1, 10, 21);
  const auto mine = backend_->Pack(Copy(source)).value();
  const std::vector<int32_t> tokens = {99, 100, 109, 110};
  std::vector<float> got(4 * 21, NAN);
  backend_->Embed(queue_, *mine, 100, tokens.data(), 4, got.data());
  for (int i = 0; i < 21; ++i) {
    EXPECT_EQ(got[i], 0.0f);
    EXPECT_EQ(got[21 + i], Bf16ToFloat(source.data.as<uint16_t>()[i]));
    EXPECT_EQ(got[42 + i], Bf16ToFloat(source.data.as<uint16_t>()[9 * 21 + i]));
    EXPECT_EQ(got[63 + i], 0.0f);
  }
}

TEST_P(Kernels, GroupedMatMulAndCombineAgreeWithALoopOverRows) {
  const int64_t rows = 23, experts = 7, top_k = 3, inputs = 40, outputs = 30;
  const HostMatrix source = RandomMatrix(random_, DType::kBF16, experts, outputs, inputs);
  const auto stack = backend_->Pack(Copy(source)).value();
  std::vector<int32_t> chosen;
  std::vector<float> weights;
  for (int64_t row = 0; row < rows; ++row) {
    std::vector<int32_t> order = {0, 1, 2, 3, 4, 5, 6};
    std::shuffle(order.begin(), order.end(), random_);
    chosen.insert(chosen.end(), order.begin(), order.begin() + top_k);
    for (int64_t slot = 0; slot < top_k; ++slot)
      weights.push_back(0.1f * static_cast<float>(slot + 1));
  }
  RouterArgs route;
  route.rows = rows;
  route.experts = experts;
  route.top_k = top_k;
  route.chosen = chosen.data();
  route.weights = weights.data();
  std::vector<RowGroup> groups(experts);
  int32_t count = 0;
  std::vector<int32_t> row_of(chosen.size()), assignment_of(chosen.size());
  const ExpertGroups grouping{groups.data(), &count, row_of.data(), assignment_of.data()};
  backend_->GroupRows(queue_, route, grouping);
  const auto x = Random(random_, rows * inputs);
  std::vector<float> expert_out(chosen.size() * outputs, NAN),
      got(static_cast<size_t>(rows * outputs)), want(got.size());
  backend_->GroupedMatMul(queue_, *stack, grouping, x.data(), true, expert_out.data(), outputs);
  const auto shared = Random(random_, rows * outputs);
  backend_->CombineExperts(queue_, route, grouping, expert_out.data(), shared.data(), outputs,
                           got.data());
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t n = 0; n < outputs; ++n) {
      double sum = shared[row * outputs + n];
      for (int64_t slot = 0; slot < top_k; ++slot) {
        const int64_t e = chosen[row * top_k + slot];
        for (int64_t k = 0; k < inputs; ++k) {
          sum += double{weights[row * top_k + slot]} * x[row * inputs + k] *
                 Bf16ToFloat(source.data.as<uint16_t>()[(e * outputs + n) * inputs + k]);
        }
      }
      want[row * outputs + n] = static_cast<float>(sum);
    }
  }
  EXPECT_LE(Difference(got, want), 2e-6);
}

TEST_P(Kernels, RouterAgreesWithTheReferenceCases) {
  const testing::Golden golden(
      testing::SourcePath("tests/goldens/kernels/router_cases.safetensors"));
  int cases = 0;
  for (; golden.Has(std::to_string(cases) + ".params"); ++cases) {
    const std::string name = std::to_string(cases);
    const auto params =
        golden.Ids(name + ".params");  // experts, top_k, n_group, topk_group, norm_topk_prob
    const auto logits = golden.Floats(name + ".logits");
    const auto bias = golden.Floats(name + ".bias");
    const auto want_chosen = golden.Ids(name + ".idx");
    const auto want_weights = golden.Floats(name + ".weight");
    RouterArgs args;
    args.experts = params[0];
    args.top_k = params[1];
    args.n_group = params[2];
    args.topk_group = params[3];
    args.normalize = params[4] != 0;
    args.scale = golden.Floats(name + ".scale")[0];
    args.rows = static_cast<int64_t>(logits.size()) / args.experts;
    args.logits = logits.data();
    args.correction = bias.data();
    std::vector<int32_t> chosen(want_chosen.size());
    std::vector<float> weights(want_weights.size());
    args.chosen = chosen.data();
    args.weights = weights.data();
    backend_->Route(queue_, args);
    EXPECT_EQ(chosen, want_chosen) << name;
    EXPECT_LE(Difference(weights, want_weights), 1e-6) << name;
  }
  EXPECT_EQ(cases, 7);
}

INSTANTIATE_TEST_SUITE_P(All, Kernels,
                         ::testing::ValuesIn(testing::WithDevices(
                             {"ref", "cpu", "cpu/avx512", "cpu/avx2", "cpu/baseline", "cpu/neon"})),
                         BackendName);

}  // namespace
}  // namespace lockstep::kernels
