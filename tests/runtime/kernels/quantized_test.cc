// The 8-bit products of the CPU backend, format by format: against plain loops over DecodeRow'd
// weights and activations quantized here, and bit against bit between instruction sets, batches and
// threads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/kernels/backend.h"
#include "tests/runtime/kernels/quantized_matrices.h"
#include "tests/support/kernels.h"

namespace lockstep::kernels {
namespace {

// What the rule of docs/numerics.md makes of activations, as the numbers they stand for. Without
// `fused` multiply-add a product is rounded before the integer is taken.
std::vector<double> Quantized(const float* x, int64_t count, bool fused) {
  std::vector<double> values(static_cast<size_t>(count));
  for (int64_t begin = 0; begin < count; begin += 32) {
    float largest = 0;
    for (int64_t i = begin; i < begin + 32; ++i) largest = std::max(largest, std::fabs(x[i]));
    if (largest < 1e-30f) continue;
    const float factor = 127.0f / largest, scale = largest / 127.0f;
    for (int64_t i = begin; i < begin + 32; ++i) {
      const double product = fused ? double{x[i]} * factor : x[i] * factor;
      values[static_cast<size_t>(i)] = std::nearbyint(product) * scale;
    }
  }
  return values;
}

// Largest error of a row of y against products of decoded weights and float32 activations, in units
// of the sum of |w x|.
double ErrorOfDecoded(const HostMatrix& matrix, const float* x, const float* y) {
  double worst = 0;
  for (int64_t n = 0; n < matrix.outputs; ++n) {
    const std::vector<float> w = Decoded(matrix, n);
    double sum = 0, size = 1e-30;
    for (size_t k = 0; k < w.size(); ++k) {
      sum += double{w[k]} * x[k];
      size += std::fabs(double{w[k]} * x[k]);
    }
    if (std::isnan(y[n])) return INFINITY;
    worst = std::max(worst, std::fabs(sum - y[n]) / size);
  }
  return worst;
}

class Quantized8 : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    StatusOr<std::unique_ptr<Backend>> made = MakeBackend(GetParam(), Precision::kFast);
    if (!made.ok()) GTEST_SKIP() << made.status();
    backend_ = std::move(*made);
  }
  // y [rows, outputs + 3].
  std::vector<float> MatMul(Queue& queue, const PackedMatrix& weights, const float* bias,
                            const float* x, int64_t rows) {
    const int64_t stride = weights.outputs() + 3;
    std::vector<float> y(static_cast<size_t>(rows * stride), NAN);
    backend_->MatMul(queue, weights, bias, x, rows, y.data(), stride);
    return y;
  }
  // Largest error of row r of y, in units of the sum of |w x|.
  double ErrorOfRow(const HostMatrix& matrix, int64_t index, const float* x, const float* bias,
                    const float* y) {
    const bool fused = std::string(GetParam()) != "cpu/baseline";
    const std::vector<double> q = Quantized(x, matrix.inputs, fused);
    double worst = 0;
    for (int64_t n = 0; n < matrix.outputs; ++n) {
      const std::vector<float> w = Decoded(matrix, index * matrix.outputs + n);
      double sum = bias != nullptr ? bias[n] : 0, size = std::fabs(sum) + 1e-30;
      for (size_t k = 0; k < w.size(); ++k) {
        sum += q[k] * w[k];
        size += std::fabs(q[k] * w[k]);
      }
      if (std::isnan(y[n])) return INFINITY;
      worst = std::max(worst, std::fabs(sum - y[n]) / size);
    }
    return worst;
  }

  std::unique_ptr<Backend> backend_;
  ThreadPool one_{1};
  ThreadPool three_{3};
  Queue queue_{&three_};
  Queue single_{&one_};
  RandomRows random_{lockstep::testing::TestSeed()};
};

TEST_P(Quantized8, MatMulAgreesWithPlainLoopsForEveryFormatAndShape) {
  for (const WeightFormat& format : FastFormats()) {
    for (const auto& [rows, outputs, blocks, phase] : {std::tuple{1, 1, 1, 0},
                                                       {1, 16, 8, 3},
                                                       {1, 200, 9, 7},
                                                       {2, 33, 3, 1},
                                                       {7, 40, 16, 0},
                                                       {14, 420, 2, 1},
                                                       {13, 400, 1, 0},
                                                       {21, 17, 5, 6},
                                                       {2, 0, 2, 0},
                                                       {3, 20, 0, 0}}) {
      const int64_t inputs = int64_t{blocks} * kBlockWeights;
      const int64_t in_group = format.group_blocks > 1 ? phase % format.group_blocks : 0;
      const HostMatrix source = random_.Make(format, 1, outputs, inputs, in_group);
      const auto mine = backend_->Pack(Copy(source)).value();
      const auto x = random_.Floats(rows * inputs);
      const auto bias = random_.Floats(outputs);
      const auto got = MatMul(queue_, *mine, bias.data(), x.data(), rows);
      const int64_t stride = outputs + 3;
      for (int64_t row = 0; row < rows; ++row) {
        const float* y = got.data() + row * stride;
        EXPECT_LE(ErrorOfRow(source, 0, x.data() + row * inputs, bias.data(), y), 1e-6)
            << format.Name() << ", row " << row << " of " << rows << "x" << outputs << "x"
            << inputs;
        for (int64_t n = outputs; n < stride; ++n) EXPECT_TRUE(std::isnan(y[n]));
        // One row alone, by one thread: the same bits.
        const auto alone = MatMul(single_, *mine, bias.data(), x.data() + row * inputs, 1);
        EXPECT_EQ(std::memcmp(alone.data(), y, static_cast<size_t>(outputs) * sizeof(float)), 0)
            << format.Name() << ", row " << row;
      }
    }
  }
}

TEST_P(Quantized8, ProductsOfTheLargestCodesAndActivationsDoNotOverflow) {
  constexpr int64_t kOutputs = 32, kInputs = 8 * kBlockWeights;
  std::vector<float> x(5 * kInputs);
  for (size_t i = 0; i < x.size(); ++i) x[i] = i < kInputs ? 2.0f : -2.0f;  // integers of +-127
  for (const WeightFormat& format : FastFormats()) {
    for (const uint8_t code : {0x00, 0x77, 0x7f, 0x80, 0xff}) {
      const HostMatrix source = random_.Make(format, 1, kOutputs, kInputs, 0, code);
      const auto mine = backend_->Pack(Copy(source)).value();
      const auto got = MatMul(queue_, *mine, nullptr, x.data(), 5);
      for (int64_t row = 0; row < 5; ++row) {
        EXPECT_LE(ErrorOfRow(source, 0, x.data() + row * kInputs, nullptr,
                             got.data() + row * (kOutputs + 3)),
                  1e-6)
            << format.Name() << ", bytes " << int{code} << ", row " << row;
      }
    }
  }
}

TEST_P(Quantized8, GroupedProductsAgreeWithPlainLoops) {
  const int64_t rows = 29, experts = 5, top_k = 2, inputs = 96;
  for (const WeightFormat& format : FastFormats()) {
    const HostMatrix source = random_.Make(format, experts, 35, inputs, 0);
    HostMatrix copy = Copy(source);  // packed as while loading: some matrices before the others
    backend_->PackNext(&copy);
    backend_->PackNext(&copy);
    const auto stack = backend_->Pack(std::move(copy)).value();
    std::vector<int32_t> chosen;
    for (int32_t row = 0; row < rows; ++row) {
      chosen.push_back(row % 3);  // expert 3 gets a few rows, expert 4 none
      chosen.push_back(row % 7 == 0 ? 3 : (row + 1) % 3);
    }
    RouterArgs route;
    route.rows = rows;
    route.experts = experts;
    route.top_k = top_k;
    route.chosen = chosen.data();
    std::vector<RowGroup> groups(experts);
    int32_t count = 0;
    std::vector<int32_t> row_of(chosen.size()), assignment_of(chosen.size());
    const ExpertGroups grouping{groups.data(), &count, row_of.data(), assignment_of.data()};
    backend_->GroupRows(queue_, route, grouping);
    const auto x = random_.Floats(rows * top_k * inputs);
    for (const bool by_row : {true, false}) {
      std::vector<float> y(chosen.size() * 40, NAN);
      backend_->GroupedMatMul(queue_, *stack, grouping, x.data(), by_row, y.data(), 40);
      for (const RowGroup& group : std::span(groups.data(), static_cast<size_t>(count))) {
        for (int64_t a = group.begin; a < group.end; ++a) {
          const float* from = x.data() + (by_row ? row_of[static_cast<size_t>(a)] : a) * inputs;
          EXPECT_LE(ErrorOfRow(source, group.matrix, from, nullptr, y.data() + a * 40), 1e-6)
              << format.Name() << ", assignment " << a;
        }
      }
    }
  }
}

TEST_P(Quantized8, EmbeddingRowsAreDecodedExactly) {
  for (const WeightFormat& format : FastFormats()) {
    for (const int64_t outputs : {16, 21}) {
      const HostMatrix source = random_.Make(format, 1, outputs, 10 * kBlockWeights, 0);
      const auto table = backend_->Pack(Copy(source)).value();
      std::vector<int32_t> tokens;
      for (int32_t token = 0; token < outputs + 1; ++token) tokens.push_back(token + 100);
      std::vector<float> y(tokens.size() * static_cast<size_t>(source.inputs), NAN);
      backend_->Embed(queue_, *table, 100, tokens.data(), outputs + 1, y.data());
      for (int64_t row = 0; row < outputs; ++row) {
        const auto want = Decoded(source, row);
        EXPECT_TRUE(std::equal(want.begin(), want.end(), y.begin() + row * source.inputs))
            << format.Name() << ", row " << row;
      }
      EXPECT_EQ(y.back(), 0.0f);
    }
  }
}

TEST_P(Quantized8, ZerosGiveZeroAndNotANumberIsNotLost) {
  for (const WeightFormat& format : FastFormats()) {
    const HostMatrix source = random_.Make(format, 1, 16, 64, 0);
    const auto packed = backend_->Pack(Copy(source)).value();
    std::vector<float> x(64, 0);
    for (const float y : MatMul(single_, *packed, nullptr, x.data(), 1))
      EXPECT_TRUE(y == 0 || std::isnan(y));
    EXPECT_EQ(MatMul(single_, *packed, nullptr, x.data(), 1)[0], 0.0f);
    x[5] = 1e-38f;
    EXPECT_EQ(MatMul(single_, *packed, nullptr, x.data(), 1)[0], 0.0f) << format.Name();
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      x[40] = bad;
      EXPECT_TRUE(std::isnan(MatMul(single_, *packed, nullptr, x.data(), 1)[0])) << format.Name();
    }
  }
}

TEST_P(Quantized8, ExactPrecisionAgreesWithDecodedWeightsInEveryFormat) {
  const auto exact = MakeBackend(GetParam(), Precision::kExact).value();
  std::vector<WeightFormat> formats = FastFormats();
  formats.push_back(WeightFormat::Fp8(kWholeRow));
  formats.push_back(WeightFormat::Fp8(4));
  for (const WeightFormat& format : formats) {
    for (const int64_t rows : {1, 35}) {
      const int64_t inputs = 19 * kBlockWeights, outputs = 21;
      HostMatrix source = random_.Make(format, 1, outputs, inputs, 0);
      if (format.encoding == Encoding::kFp8) {
        for (uint64_t i = 0; i < source.data.bytes(); ++i)
          source.data.data()[i] &= static_cast<std::byte>(0xbf);
      }
      const auto packed = exact->Pack(Copy(source)).value();
      const auto x = random_.Floats(rows * inputs);
      std::vector<float> y(static_cast<size_t>(rows * outputs));
      exact->MatMul(queue_, *packed, nullptr, x.data(), rows, y.data(), outputs);
      for (int64_t row = 0; row < rows; ++row) {
        EXPECT_LE(ErrorOfDecoded(source, x.data() + row * inputs, y.data() + row * outputs), 1e-6)
            << format.Name();
      }
    }
  }
}

TEST_P(Quantized8, HalfABlockAtTheEndIsNotLost) {
  const WeightFormat format = WeightFormat::Of(Encoding::kNvfp4);
  constexpr int64_t kRows = 5, kOutputs = 35;
  for (const int64_t inputs : {16, 48, 80}) {
    const HostMatrix source = random_.Make(format, 1, kOutputs, inputs, 0);
    const auto packed = backend_->Pack(Copy(source)).value();
    const auto x = random_.Floats(kRows * inputs);
    const auto y = MatMul(queue_, *packed, nullptr, x.data(), kRows);
    for (int64_t row = 0; row < kRows; ++row) {
      EXPECT_LE(ErrorOfDecoded(source, x.data() + row * inputs, y.data() + row * (kOutputs + 3)),
                1e-6)
          << inputs << " inputs, row " << row;
    }
  }
}

// The order of docs/numerics.md, said once more: lane i adds inputs i, i + 16, ... by fused
// multiply-add, then one tree.
float InLanes(const std::vector<float>& w, const float* x) {
  float lanes[16] = {};
  for (size_t k = 0; k < w.size(); ++k) lanes[k % 16] = std::fma(x[k], w[k], lanes[k % 16]);
  for (int i = 0; i < 8; ++i) lanes[i] += lanes[i + 8];
  for (int i = 0; i < 4; ++i) lanes[i] += lanes[i + 4];
  return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
}

TEST_P(Quantized8, ExactPrecisionHasTheBitsOfItsDefinition) {
  if (std::string(GetParam()) == "cpu/baseline") GTEST_SKIP() << "no fused multiply-add";
  const auto exact = MakeBackend(GetParam(), Precision::kExact).value();
  std::vector<WeightFormat> formats = FastFormats();
  for (const DType type : {DType::kF32, DType::kF16, DType::kBF16}) formats.emplace_back(type);
  for (const WeightFormat& format : formats) {
    for (const int64_t phase : {0, 5}) {
      const int64_t inputs = 37 * kBlockWeights, outputs = 43;
      const int64_t in_group = format.group_blocks > 1 ? phase % format.group_blocks : 0;
      HostMatrix source = random_.Make(format, 1, outputs, inputs, in_group);
      if (format.plain()) {  // no number is infinite or NaN with this bit gone
        for (uint64_t i = 0; i < source.data.bytes(); ++i)
          source.data.data()[i] &= static_cast<std::byte>(0xbf);
      }
      const auto packed = exact->Pack(Copy(source)).value();
      for (const int64_t rows : {1, 2, 3, 4, 5, 35}) {
        const auto x = random_.Floats(rows * inputs);
        std::vector<float> y(static_cast<size_t>(rows * outputs));
        exact->MatMul(queue_, *packed, nullptr, x.data(), rows, y.data(), outputs);
        for (int64_t n = 0; n < outputs; ++n) {
          const auto w = Decoded(source, n);
          for (int64_t row = 0; row < rows; ++row)
            ASSERT_EQ(y[static_cast<size_t>(row * outputs + n)],
                      InLanes(w, x.data() + row * inputs))
                << format.Name() << ", phase " << in_group << ", row " << row << " of " << rows
                << ", output " << n;
        }
      }
    }
  }
}

TEST_P(Quantized8, WhatWasPackedForFullPrecisionIsPackedAgainToTheSameBits) {
  const auto exact = MakeBackend(GetParam(), Precision::kExact).value();
  for (const WeightFormat& format : FastFormats()) {
    const HostMatrix source = random_.Make(format, 2, 35, 3 * kBlockWeights, 0);
    const auto x = random_.Floats(5 * source.inputs);
    const auto at_once = backend_->Pack(Copy(source)).value();
    const auto again = backend_->Repack(exact->Pack(Copy(source)).value()).value();
    EXPECT_EQ(again->bytes(), at_once->bytes());
    const auto want = MatMul(queue_, *at_once, nullptr, x.data(), 5);
    const auto got = MatMul(queue_, *again, nullptr, x.data(), 5);
    EXPECT_EQ(std::memcmp(got.data(), want.data(), want.size() * sizeof(float)), 0)
        << format.Name();
  }
}

TEST_P(Quantized8, MoreRowsThanFitAtOnceGiveTheSameBits) {
  const int64_t rows = 360'000, inputs = 32, period = 7;
  const HostMatrix source = random_.Make(WeightFormat::Of(Encoding::kQ4_0), 2, 1, inputs, 0);
  const auto packed = backend_->Pack(Copy(source)).value();
  const auto pattern = random_.Floats(period * inputs);
  std::vector<float> x(static_cast<size_t>(rows * inputs));
  for (int64_t row = 0; row < rows; ++row) {
    std::copy_n(pattern.begin() + row % period * inputs, inputs, x.begin() + row * inputs);
  }
  std::vector<float> first(period), second(period), y(static_cast<size_t>(rows), NAN);
  backend_->MatMul(queue_, *packed, nullptr, x.data(), period, first.data(), 1);
  backend_->MatMul(queue_, *packed, nullptr, x.data(), rows, y.data(), 1);
  for (size_t row = 0; row < y.size(); ++row) ASSERT_EQ(y[row], first[row % period]) << row;
  // The same rows by way of an expert's list, the other way around and in two groups.
  std::vector<int32_t> row_of(y.size());
  for (size_t a = 0; a < y.size(); ++a) row_of[a] = static_cast<int32_t>(y.size() - 1 - a);
  RowGroup groups[2] = {{0, 0, 170'000}, {1, 170'000, static_cast<int32_t>(rows)}};
  int32_t count = 2;
  const ExpertGroups grouping{groups, &count, row_of.data(), nullptr};
  std::vector<float> z(y.size(), NAN);
  backend_->GroupedMatMul(queue_, *packed, grouping, x.data(), true, z.data(), 1);
  groups[0].end = static_cast<int32_t>(period);
  count = 1;
  groups[0].matrix = 1;
  backend_->GroupedMatMul(queue_, *packed, grouping, x.data(), false, second.data(), 1);
  for (size_t a = 0; a < z.size(); ++a) {
    const auto at = static_cast<size_t>(row_of[a] % period);
    ASSERT_EQ(z[a], a < 170'000 ? first[at] : second[at]) << a;
  }
}

TEST(QuantizedBits, AreThoseOfEveryInstructionSetWithFusedMultiplyAdd) {
  struct Case {
    HostMatrix source;
    std::vector<float> x;
    int64_t rows;
  };
  RandomRows random(7);
  std::vector<Case> cases;
  for (const WeightFormat& format : FastFormats()) {
    for (const auto& [rows, outputs, blocks] : {std::tuple{5, 50, 12}, {15, 210, 8}}) {
      HostMatrix source = random.Make(format, 1, outputs, blocks * kBlockWeights, 0);
      std::vector<float> x = random.Floats(rows * source.inputs);
      cases.push_back({std::move(source), std::move(x), rows});
    }
  }
  testing::ExpectSameBitsOnEverySet(0xd6717fce2827688b, [&](const Backend& backend, Queue& queue) {
    std::vector<uint64_t> bits;
    for (const auto& [source, x, rows] : cases) {
      const auto packed = backend.Pack(Copy(source)).value();
      std::vector<float> y(static_cast<size_t>(rows * source.outputs));
      backend.MatMul(queue, *packed, nullptr, x.data(), rows, y.data(), source.outputs);
      bits.push_back(testing::BitsOf(y));
    }
    return bits;
  });
}

TEST(QuantizedNames, SayWhichPrecisionTheHandshakeCompares) {
  const std::string exact = MakeBackend("cpu", Precision::kExact).value()->name();
  EXPECT_EQ(MakeBackend("cpu", Precision::kFast).value()->name(), exact + "+q8");
  EXPECT_EQ(MakeBackend("cpu").value()->name(), exact);
  EXPECT_EQ(MakeBackend("ref", Precision::kFast).value()->name(), "ref");
}

std::string SetName(const ::testing::TestParamInfo<const char*>& info) {
  return std::string(info.param).substr(4);
}

INSTANTIATE_TEST_SUITE_P(All, Quantized8,
                         ::testing::Values("cpu/avx512vnni", "cpu/avx512", "cpu/avx2",
                                           "cpu/baseline", "cpu/neon", "cpu/dotprod", "cpu/i8mm"),
                         SetName);

}  // namespace
}  // namespace lockstep::kernels
