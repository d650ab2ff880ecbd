// Rows that were quantized and decoded again: how far they are, and what stays exactly.
#include "runtime/tensor/quantize.h"

#include <cmath>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

constexpr const char* kNames[] = {"q8_0", "q6_k", "q5_k", "q4_k", "q4_0", "fp8"};

// `spare` bytes behind the row must stay as they are.
std::vector<float> RoundTrip(const WeightFormat& format, const std::vector<float>& weights) {
  const auto inputs = static_cast<int64_t>(weights.size());
  const uint64_t bytes = LayoutOf(format, inputs, 0).row_bytes;
  std::vector<std::byte> row(bytes + 8, std::byte{0x5a});
  QuantizeRow(format, weights.data(), inputs, row.data());
  for (uint64_t i = bytes; i < bytes + 8; ++i) EXPECT_EQ(row[i], std::byte{0x5a});
  std::vector<float> decoded(weights.size());
  DecodeRow(format, row.data(), inputs, 0, 0, inputs, decoded.data());
  return decoded;
}

std::vector<float> Normal(int64_t count, float scale) {
  std::mt19937_64 random(testing::TestSeed());
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

double RelativeError(const std::vector<float>& expected, const std::vector<float>& actual) {
  double squares = 0, differences = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    squares += double{expected[i]} * expected[i];
    differences += (double{expected[i]} - actual[i]) * (double{expected[i]} - actual[i]);
  }
  return std::sqrt(differences / squares);
}

TEST(Quantize, NormalWeightsComeBackWithinTheErrorOfTheFormat) {
  const std::vector<std::pair<std::string, double>> bounds = {{"q8_0", 0.0065}, {"q6_k", 0.0185},
                                                              {"q5_k", 0.0365}, {"q4_k", 0.0745},
                                                              {"q4_0", 0.0905}, {"fp8", 0.0275}};
  for (const float scale : {1.0f, 0.02f, 1e-3f, 300.0f}) {
    const std::vector<float> weights = Normal(65536, scale);
    for (const auto& [name, bound] : bounds) {
      const double error = RelativeError(weights, RoundTrip(*QuantizedFormat(name), weights));
      EXPECT_LT(error, bound) << name << " at " << scale;
      EXPECT_GT(error, bound / 3) << name << " at " << scale << ": too good to be true";
    }
  }
}

// A mean far from zero costs the formats with minimums little.
TEST(Quantize, MinimumsFollowWeightsOfOneSign) {
  std::vector<float> weights = Normal(4096, 0.1f);
  for (float& weight : weights) weight = -1 + weight;
  EXPECT_LT(RelativeError(weights, RoundTrip(*QuantizedFormat("q5_k"), weights)), 0.012);
  EXPECT_LT(RelativeError(weights, RoundTrip(*QuantizedFormat("q4_k"), weights)), 0.015);
}

TEST(Quantize, ValuesThatQ8AndQ4CanHoldStayExactly) {
  std::mt19937_64 random(testing::TestSeed());
  for (const bool eight : {true, false}) {
    std::vector<float> weights;
    for (int block = 0; block < 1000; ++block) {
      // As ggml encodes: the largest weight has the outermost code.
      const auto half = static_cast<uint16_t>(random() % 0x6000);
      const float d = HalfToFloat(half) * (eight || random() % 2 ? 1 : -1);
      const size_t outermost = random() % 32;
      for (size_t j = 0; j < 32; ++j) {
        const int code =
            eight ? static_cast<int>(random() % 255) - 127 : static_cast<int>(random() % 15) - 7;
        weights.push_back(d * static_cast<float>(j == outermost ? (eight ? 127 : -8) : code));
      }
    }
    const std::vector<float> decoded =
        RoundTrip(*QuantizedFormat(eight ? "q8_0" : "q4_0"), weights);
    for (size_t i = 0; i < weights.size(); ++i) ASSERT_EQ(weights[i], decoded[i]) << eight << i;
  }
}

TEST(Quantize, ZerosTinyHugeAndConstantRowsStayFinite) {
  for (const std::string name : kNames) {
    const WeightFormat format = *QuantizedFormat(name);
    for (const float value : {0.0f, 1e-42f, -1e-12f, 5.0f, -5.0f, 1e30f, 3e38f}) {
      const std::vector<float> decoded = RoundTrip(format, std::vector<float>(320, value));
      for (const float weight : decoded) {
        ASSERT_TRUE(std::isfinite(weight)) << name << " " << value;
        if (std::fabs(value) == 5 || value == 0) {
          ASSERT_NEAR(weight, value, std::fabs(value) * 0.01) << name;
        }
      }
    }
  }
}

// A row of other than whole super-blocks, and codes that do not depend on what follows.
TEST(Quantize, ARowNeedNotBeWholeSuperBlocks) {
  const std::vector<float> weights = Normal(256 + 96, 1);
  for (const std::string name : {"q6_k", "q5_k", "q4_k", "q8_0", "q4_0"}) {
    const WeightFormat format = *QuantizedFormat(name);
    const std::vector<float> whole = RoundTrip(format, weights);
    EXPECT_LT(RelativeError(weights, whole), 0.1) << name;
    const std::vector<float> first(weights.begin(), weights.begin() + 256);
    const std::vector<float> part = RoundTrip(format, first);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin())) << name;
  }
  const std::vector<float> odd(weights.begin(), weights.begin() + 33);
  EXPECT_LT(RelativeError(odd, RoundTrip(*QuantizedFormat("fp8"), odd)), 0.04);
}

TEST(Quantize, UnknownNamesAreRefusedWithTheKnownOnes) {
  const auto format = QuantizedFormat("q3_k");
  ASSERT_FALSE(format.ok());
  EXPECT_THAT(MessageOf(format.status()), ::testing::HasSubstr("'q3_k'; give q8_0, q6_k"));
}

}  // namespace
}  // namespace lockstep
