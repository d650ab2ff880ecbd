// The `ref` backend with weights of every format: what its products are by definition.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/kernels/backend.h"
#include "tests/runtime/tensor/random_rows.h"
#include "tests/support/seed.h"

namespace lockstep::kernels {
namespace {

constexpr int64_t kCount = 3, kOutputs = 5, kInputs = 192;

class RefFormats : public ::testing::Test {
 protected:
  // A stack of matrices whose rows begin inside a group where the format has groups.
  HostMatrix Random(const WeightFormat& format) {
    const int64_t phase = format.group_blocks > 1 ? format.group_blocks - 1 : 0;
    HostMatrix matrix =
        HostMatrix::Allocate(format, kCount, kOutputs, kInputs, "test", phase).value();
    weights_.clear();
    for (int64_t row = 0; row < kCount * kOutputs; ++row) {
      const auto bytes = lockstep::testing::FiniteRow(format, kInputs, phase, &random_);
      std::memcpy(matrix.row(0, row), bytes.data(), bytes.size());
      std::vector<float> decoded(kInputs);
      DecodeRow(format, bytes.data(), kInputs, phase, 0, kInputs, decoded.data());
      weights_.push_back(decoded);
    }
    return matrix;
  }
  std::vector<float> Activations(int64_t rows) {
    std::normal_distribution<float> normal(0, 1);
    std::vector<float> values(static_cast<size_t>(rows * kInputs));
    for (float& value : values) value = normal(random_);
    return values;
  }
  // Of output `output` of matrix `index`.
  float Product(const std::vector<float>& x, int64_t row, int64_t index, int64_t output,
                float bias) const {
    const std::vector<float>& w = weights_[static_cast<size_t>(index * kOutputs + output)];
    double sum = 0;
    for (int64_t k = 0; k < kInputs; ++k) sum += x[row * kInputs + k] * double{w[k]};
    return static_cast<float>(sum + bias);
  }

  std::mt19937_64 random_{lockstep::testing::TestSeed()};
  std::vector<std::vector<float>> weights_;  // decoded, by matrix and output
  ThreadPool pool_{2};
  Queue queue_{&pool_};
  std::unique_ptr<Backend> ref_ = MakeRefBackend();
};

TEST_F(RefFormats, MatMulIsTheSumOverDecodedWeights) {
  for (const WeightFormat& format : lockstep::testing::AllFormats()) {
    const auto packed = ref_->Pack(Random(format)).value();
    const std::vector<float> x = Activations(4), bias = {1, 2, 3, 4, 5};
    const int64_t stride = kOutputs + 2;
    std::vector<float> y(4 * stride, 77);
    ref_->MatMul(queue_, *packed, bias.data(), x.data(), 4, y.data(), stride);
    for (int64_t row = 0; row < 4; ++row) {
      for (int64_t n = 0; n < kOutputs; ++n) {
        ASSERT_TRUE(std::isfinite(y[row * stride + n])) << format.Name();
        ASSERT_EQ(y[row * stride + n], Product(x, row, 0, n, bias[n])) << format.Name();
      }
      ASSERT_EQ(y[row * stride + kOutputs], 77) << "wrote between the rows";
    }
  }
}

TEST_F(RefFormats, GroupedMatMulTakesTheMatrixOfEachGroup) {
  for (const WeightFormat& format : lockstep::testing::AllFormats()) {
    const auto packed = ref_->Pack(Random(format)).value();
    const std::vector<float> x = Activations(4);
    std::vector<RowGroup> groups = {{2, 0, 3}, {1, 3, 4}};
    int32_t group_count = 2;
    std::vector<int32_t> row_of = {3, 0, 0, 1};
    const ExpertGroups experts{groups.data(), &group_count, row_of.data(), nullptr};
    for (const bool by_row : {true, false}) {
      std::vector<float> y(4 * kOutputs, 77);
      ref_->GroupedMatMul(queue_, *packed, experts, x.data(), by_row, y.data(), kOutputs);
      for (int64_t a = 0; a < 4; ++a) {
        const int64_t row = by_row ? row_of[a] : a;
        for (int64_t n = 0; n < kOutputs; ++n) {
          ASSERT_EQ(y[a * kOutputs + n], Product(x, row, a < 3 ? 2 : 1, n, 0)) << format.Name();
        }
      }
    }
  }
}

TEST_F(RefFormats, EmbedDecodesTheRowsOfThisRank) {
  for (const WeightFormat& format : lockstep::testing::AllFormats()) {
    const auto packed = ref_->Pack(Random(format)).value();
    const std::vector<int32_t> tokens = {12, 9, 15, 10};
    std::vector<float> y(4 * kInputs, 77);
    ref_->Embed(queue_, *packed, 10, tokens.data(), 4, y.data());
    for (int64_t i = 0; i < kInputs; ++i) {
      ASSERT_EQ(y[i], weights_[2][i]) << format.Name();
      ASSERT_EQ(y[kInputs + i], 0) << "a row before this rank's";
      ASSERT_EQ(y[2 * kInputs + i], 0) << "a row behind this rank's";
      ASSERT_EQ(y[3 * kInputs + i], weights_[0][i]) << format.Name();
    }
  }
}

}  // namespace
}  // namespace lockstep::kernels
