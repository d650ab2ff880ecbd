// Products with weights of every format on emulated devices: against decoded weights, and against
// the order of addition of docs/numerics.md, said once more.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/kernels/quantized_matrices.h"
#include "tests/runtime/tensor/random_rows.h"
#include "tests/support/kernels.h"

namespace lockstep::kernels {
namespace {

using lockstep::testing::AllFormats;

class CudaFormats : public ::testing::TestWithParam<const char*> {
 protected:
  HostMatrix Make(const WeightFormat& format, int64_t count, int64_t outputs, int64_t inputs,
                  int64_t phase = 0) {
    const int64_t in_group = format.group_blocks > 1 ? phase % format.group_blocks : 0;
    HostMatrix matrix =
        HostMatrix::Allocate(format, count, outputs, inputs, "test", in_group).value();
    RandomRows rows(random_());
    if (!format.plain() && format.encoding != Encoding::kFp8)
      return rows.Make(format, count, outputs, inputs, in_group);
    for (int64_t row = 0; row < count * outputs; ++row) {
      const auto bytes = lockstep::testing::FiniteRow(format, inputs, in_group, &random_);
      std::copy(bytes.begin(), bytes.end(), matrix.row(0, row));
      if (format.encoding == Encoding::kF32)
        Fill(reinterpret_cast<float*>(matrix.row(0, row)), inputs);
    }
    return matrix;
  }
  void Fill(float* to, int64_t count) {
    const auto values = lockstep::testing::Random(random_, count);
    std::copy_n(values.begin(), count, to);
  }
  std::vector<float> MatMul(const PackedMatrix& weights, const std::vector<float>& bias,
                            const float* x, int64_t rows) {
    const int64_t stride = weights.outputs() + 3;
    std::vector<float> y(static_cast<size_t>(rows * stride), NAN);
    backend_->MatMul(queue_, weights, bias.data(), x, rows, y.data(), stride);
    return y;
  }

  std::mt19937_64 random_{lockstep::testing::TestSeed()};
  std::unique_ptr<Backend> backend_ = lockstep::testing::MakeNamed(GetParam()).value();
  ThreadPool one_{1};
  Queue queue_{&one_};
};

// Lane i of 32 takes blocks i, i + 32, ...; the two halves of a block are added up by themselves.
float InWarp(const std::vector<float>& values, const std::vector<float>& scales, const float* x) {
  float lanes[32] = {};
  for (size_t block = 0; block * 32 < values.size(); ++block) {
    for (size_t half = 0; half < 2; ++half) {
      float sum = 0;
      for (size_t i = 0; i < 16; ++i) {
        const size_t k = block * 32 + half * 16 + i;
        if (k < values.size()) sum = std::fma(x[k], values[k], sum);
      }
      float& lane = lanes[block % 32];
      lane = scales.empty() ? lane + sum : std::fma(scales[2 * block + half], sum, lane);
    }
  }
  for (int apart = 16; apart > 0; apart /= 2)
    for (int i = 0; i < apart; ++i) lanes[i] += lanes[i + apart];
  return lanes[0];
}

TEST_P(CudaFormats, MatMulAgreesWithDecodedWeightsAndARowIgnoresItsBatch) {
  for (const WeightFormat& format : AllFormats()) {
    for (const auto& [rows, outputs, inputs, phase] :
         {std::tuple{1, 37, 32, 0}, {5, 33, 71 * 32, 3}, {2, 70, 40 * 32, 1}}) {
      const HostMatrix source = Make(format, 1, outputs, inputs, phase);
      const auto packed = backend_->Pack(Copy(source)).value();
      const auto x = lockstep::testing::Random(random_, rows * inputs);
      const auto bias = lockstep::testing::Random(random_, outputs);
      const auto got = MatMul(*packed, bias, x.data(), rows);
      for (int64_t row = 0; row < rows; ++row) {
        const float* y = got.data() + row * (outputs + 3);
        for (int64_t n = 0; n < outputs; ++n) {
          const std::vector<float> w = Decoded(source, n);
          double sum = bias[n], size = std::fabs(sum) + 1e-30;
          for (int64_t k = 0; k < inputs; ++k) {
            sum += double{w[k]} * x[row * inputs + k];
            size += std::fabs(double{w[k]} * x[row * inputs + k]);
          }
          ASSERT_LE(std::fabs(y[n] - sum), 1e-6 * size)
              << format.Name() << ", row " << row << ", output " << n;
        }
        for (int64_t n = outputs; n < outputs + 3; ++n) ASSERT_TRUE(std::isnan(y[n]));
        const auto alone = MatMul(*packed, bias, x.data() + row * inputs, 1);
        ASSERT_EQ(std::memcmp(alone.data(), y, static_cast<size_t>(outputs) * sizeof(float)), 0)
            << format.Name() << ", row " << row;
      }
    }
  }
}

TEST_P(CudaFormats, SumsHaveTheirSpecifiedOrder) {
  // More inputs than fit the shared memory at once.
  constexpr int64_t kOutputs = 3, kInputs = 343 * 32 + 8, kRows = 3;
  for (const DType type : {DType::kF32, DType::kBF16, DType::kF16}) {
    const HostMatrix source = Make(type, 1, kOutputs, kInputs);
    const auto packed = backend_->Pack(Copy(source)).value();
    const auto x = lockstep::testing::Random(random_, kRows * kInputs);
    const std::vector<float> no_bias(kOutputs, 0.0f);
    const auto got = MatMul(*packed, no_bias, x.data(), kRows);
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t n = 0; n < kOutputs; ++n)
        ASSERT_EQ(got[row * (kOutputs + 3) + n],
                  InWarp(Decoded(source, n), {}, x.data() + row * kInputs));
    }
  }
  // A format with scales: Q8_0, whose codes and scales stand one behind the other.
  const WeightFormat format = WeightFormat::Of(Encoding::kQ8_0);
  const HostMatrix source = Make(format, 1, 1, 70 * 32);
  const RowLayout layout = lockstep::LayoutOf(format, source.inputs, 0);
  std::vector<float> codes, scales;
  for (int64_t block = 0; block < 70; ++block) {
    uint16_t half;
    std::memcpy(&half, source.data.data() + layout.inner_at + 2 * block, sizeof half);
    scales.insert(scales.end(), 2, HalfToFloat(half));
    for (int64_t i = 0; i < 32; ++i)
      codes.push_back(static_cast<int8_t>(source.data.data()[layout.codes_at + 32 * block + i]));
  }
  const auto x = lockstep::testing::Random(random_, source.inputs);
  const auto packed = backend_->Pack(Copy(source)).value();
  EXPECT_EQ(MatMul(*packed, {0.0f}, x.data(), 1)[0], InWarp(codes, scales, x.data()));
}

TEST_P(CudaFormats, EmbeddingRowsAreDecodedExactly) {
  for (const WeightFormat& format : AllFormats()) {
    const HostMatrix source = Make(format, 1, 5, 37 * 32, 1);
    const auto table = backend_->Pack(Copy(source)).value();
    const std::vector<int32_t> tokens = {104, 99, 100, 105};
    std::vector<float> y(tokens.size() * static_cast<size_t>(source.inputs), NAN);
    backend_->Embed(queue_, *table, 100, tokens.data(), 4, y.data());
    const auto last = Decoded(source, 4), first = Decoded(source, 0);
    for (int64_t i = 0; i < source.inputs; ++i) {
      ASSERT_EQ(y[i], last[i]) << format.Name() << " " << i;
      ASSERT_EQ(y[source.inputs + i], 0);
      ASSERT_EQ(y[2 * source.inputs + i], first[i]) << format.Name() << " " << i;
      ASSERT_EQ(y[3 * source.inputs + i], 0);
    }
  }
}

TEST_P(CudaFormats, HalfABlockAtTheEndIsNotLost) {
  const WeightFormat format = WeightFormat::Of(Encoding::kNvfp4);
  for (const int64_t inputs : {16, 48, 80}) {
    const HostMatrix source = Make(format, 1, 35, inputs);
    const auto packed = backend_->Pack(Copy(source)).value();
    const auto x = lockstep::testing::Random(random_, inputs);
    const auto y = MatMul(*packed, std::vector<float>(35, 0.0f), x.data(), 1);
    for (int64_t n = 0; n < 35; ++n) {
      const auto w = Decoded(source, n);
      double sum = 0, size = 1e-30;
      for (int64_t k = 0; k < inputs; ++k) {
        sum += double{w[k]} * x[k];
        size += std::fabs(double{w[k]} * x[k]);
      }
      EXPECT_LE(std::fabs(y[n] - sum), 1e-6 * size) << inputs << " " << n;
    }
  }
}

TEST_P(CudaFormats, GroupsTakeTheirOwnMatricesAndHaveTheBitsOfProductsAlone) {
  const int64_t inputs = 96, outputs = 35;
  for (const WeightFormat& format : {WeightFormat(DType::kBF16), WeightFormat::Of(Encoding::kQ4_K),
                                     WeightFormat::Of(Encoding::kNvfp4)}) {
    const HostMatrix source = Make(format, 4, outputs, inputs);
    const auto stack = backend_->Pack(Copy(source)).value();
    std::vector<RowGroup> groups = {{3, 0, 1}, {0, 1, 8}, {2, 8, 9}};  // none uses matrix 1
    int32_t count = 3;
    std::vector<int32_t> row_of = {4, 0, 3, 1, 2, 4, 5, 6, 0};
    const ExpertGroups experts{groups.data(), &count, row_of.data(), nullptr};
    const auto x = lockstep::testing::Random(random_, 9 * inputs);
    for (const bool by_row : {true, false}) {
      std::vector<float> y(9 * 40, NAN);
      backend_->GroupedMatMul(queue_, *stack, experts, x.data(), by_row, y.data(), 40);
      for (const RowGroup& group : groups) {
        HostMatrix one = HostMatrix::Allocate(format, 1, outputs, inputs, "test").value();
        std::memcpy(one.data.data(), Copy(source).row(group.matrix, 0),
                    static_cast<size_t>(outputs) * one.row_bytes());
        const auto packed = backend_->Pack(std::move(one)).value();
        for (int64_t a = group.begin; a < group.end; ++a) {
          const int64_t row = by_row ? row_of[static_cast<size_t>(a)] : a;
          const auto alone =
              MatMul(*packed, std::vector<float>(outputs, 0.0f), x.data() + row * inputs, 1);
          for (int64_t n = 0; n < outputs; ++n)
            ASSERT_EQ(y[a * 40 + n], alone[n]) << format.Name() << " " << a << " " << n;
          for (int64_t n = outputs; n < 40; ++n) ASSERT_TRUE(std::isnan(y[a * 40 + n]));
        }
      }
    }
  }
}

TEST_P(CudaFormats, PackedBytesAreWhatPackTakes) {
  for (const WeightFormat& format : AllFormats()) {
    HostMatrix shape;
    shape.format = format;
    shape.count = 2;
    shape.outputs = 7;
    shape.inputs = 37 * 32;
    const uint64_t planned = backend_->PackedBytes(shape);
    EXPECT_EQ(backend_->Pack(Make(format, 2, 7, 37 * 32)).value()->bytes(), planned);
    // Nothing but three planes that begin at multiples of 16 more than the portable rows take.
    EXPECT_LE(planned, HostMatrix::BytesOf(shape, "test").value() + 2 * 7 * 48) << format.Name();
  }
}

INSTANTIATE_TEST_SUITE_P(All, CudaFormats, ::testing::ValuesIn(lockstep::testing::WithDevices({})),
                         lockstep::testing::BackendName);

}  // namespace
}  // namespace lockstep::kernels
