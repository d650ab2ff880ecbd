#include "collectives/wire_format.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {
namespace {

std::vector<float> RoundTrip(WireFormat wire, std::vector<float> values) {
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(values));
  Pack(wire, bytes);
  std::vector<float> rounded(values.size());
  Unpack(wire, bytes.first(WireBytes(wire, values.size())), rounded);
  return rounded;
}

// Normal numbers of many sizes, both signs.
std::vector<float> Numbers(size_t count, int least_exponent, int most_exponent) {
  std::mt19937 random(7);
  std::vector<float> values(count);
  for (float& value : values) {
    const auto mantissa = static_cast<float>(random() % (1u << 24)) * 0x1p-23f - 1.0f;
    const int range = most_exponent - least_exponent;
    value = std::ldexp(mantissa, least_exponent + static_cast<int>(random() % range));
  }
  return values;
}

TEST(WireFormat, NamesAndBytes) {
  for (const char* name : {"f32", "bf16", "int8"}) {
    EXPECT_STREQ(NameOf(*WireFormatOf(name)), name);
  }
  EXPECT_EQ(*WireFormatOf("float32"), WireFormat::kF32);
  EXPECT_EQ(KindOf(WireFormatOf("fp4").status()), ErrorKind::kUsage);
  // A token of GLM-4.7.
  EXPECT_EQ(WireBytes(WireFormat::kF32, 5120), 20'480u);
  EXPECT_EQ(WireBytes(WireFormat::kBF16, 5120), 10'240u);
  EXPECT_EQ(WireBytes(WireFormat::kInt8, 5120), 5'760u);
  EXPECT_EQ(WireBytes(WireFormat::kInt8, 33), 40u);
  for (const WireFormat wire : {WireFormat::kBF16, WireFormat::kInt8}) {
    for (size_t count = 0; count < 200; ++count) EXPECT_LE(WireBytes(wire, count), count * 4);
  }
}

TEST(WireFormat, Float32StaysAsItIs) {
  const std::vector<float> values = Numbers(77, -100, 100);
  EXPECT_EQ(RoundTrip(WireFormat::kF32, values), values);
}

TEST(WireFormat, BF16IsTheNearestNumberOfEightBits) {
  const std::vector<float> values = Numbers(64 * kWireBlock, -100, 100);
  const std::vector<float> rounded = RoundTrip(WireFormat::kBF16, values);
  for (size_t i = 0; i < values.size(); ++i) {
    // Eight significant bits, in double, where everything is exact; nearbyint takes ties to even.
    int exponent = 0;
    const double mantissa = std::frexp(static_cast<double>(values[i]), &exponent);
    const double nearest = std::ldexp(std::nearbyint(std::ldexp(mantissa, 8)), exponent - 8);
    ASSERT_EQ(rounded[i], static_cast<float>(nearest)) << values[i];
  }
}

TEST(WireFormat, BF16TiesGoToEvenAndInfinitiesAndNaNsStay) {
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> values(kWireBlock, 0.0f);
  values[0] = 1 + 0x1p-8f;      // between 1 and 1 + 2^-7
  values[1] = 1 + 3 * 0x1p-8f;  // between 1 + 2^-7 and 1 + 2^-6
  values[2] = infinity;
  values[3] = -infinity;
  values[4] = std::numeric_limits<float>::quiet_NaN();
  values[5] = std::numeric_limits<float>::max();  // rounds up
  values[6] = -0.0f;
  uint32_t low_nan = 0x7f800001;  // whose bits are all cut off
  std::memcpy(&values[7], &low_nan, sizeof(low_nan));
  const std::vector<float> rounded = RoundTrip(WireFormat::kBF16, values);
  EXPECT_EQ(rounded[0], 1.0f);
  EXPECT_EQ(rounded[1], 1 + 0x1p-6f);
  EXPECT_EQ(rounded[2], infinity);
  EXPECT_EQ(rounded[3], -infinity);
  EXPECT_TRUE(std::isnan(rounded[4]));
  EXPECT_EQ(rounded[5], infinity);
  EXPECT_TRUE(rounded[6] == 0 && std::signbit(rounded[6]));
  EXPECT_TRUE(std::isnan(rounded[7]));
}

TEST(WireFormat, Int8IsWithinHalfAStepOfItsBlocksLargest) {
  const std::vector<float> values = Numbers(64 * kWireBlock, -12, 12);
  const std::vector<float> rounded = RoundTrip(WireFormat::kInt8, values);
  for (size_t block = 0; block < values.size(); block += kWireBlock) {
    double largest = 0;
    for (size_t i = block; i < block + kWireBlock; ++i) {
      largest = std::max(largest, std::abs(static_cast<double>(values[i])));
    }
    for (size_t i = block; i < block + kWireBlock; ++i) {
      ASSERT_LE(std::abs(static_cast<double>(rounded[i]) - values[i]), largest / 254 * 1.00001);
      const double step = static_cast<double>(rounded[i]) / (largest / 127);
      ASSERT_NEAR(step, std::nearbyint(step), 1e-4) << "no multiple of the block's step";
    }
  }
}

TEST(WireFormat, Int8OfUnusualBlocks) {
  const auto of = [](float first, float others) {
    std::vector<float> values(kWireBlock, others);
    values[5] = first;
    return RoundTrip(WireFormat::kInt8, values);
  };
  for (const float value : of(0, 0)) EXPECT_EQ(value, 0);
  // Too small to divide by.
  for (const float value : of(0x1p-140f, 0x1p-145f)) EXPECT_EQ(value, 0);
  EXPECT_EQ(of(127, 1)[0], 1);
  EXPECT_EQ(of(-127, 1)[5], -127);
  EXPECT_EQ(of(127, 2.5f)[0], 2);  // ties go to even
  EXPECT_NEAR(of(0x1p127f, 0)[5] / 0x1p127f, 1, 1e-6);
  // What went wrong must not look like a number.
  for (const float wrong :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    for (const float value : of(wrong, 1)) EXPECT_TRUE(std::isnan(value));
  }
}

TEST(WireFormat, WhatIsBehindTheLastBlockIsNotRounded) {
  for (const WireFormat wire : {WireFormat::kBF16, WireFormat::kInt8}) {
    const std::vector<float> values = Numbers(2 * kWireBlock + 31, -3, 3);
    const std::vector<float> rounded = RoundTrip(wire, values);
    EXPECT_NE(rounded[0], values[0]);
    for (size_t i = 2 * kWireBlock; i < values.size(); ++i) EXPECT_EQ(rounded[i], values[i]);
  }
}

TEST(WireFormat, BlocksBeginWherePiecesOfASlotAreCut) {
  for (const WireFormat wire : {WireFormat::kF32, WireFormat::kBF16, WireFormat::kInt8}) {
    std::vector<float> values = Numbers(5 * kWireBlock + 3, -3, 3);
    const std::vector<float> whole = RoundTrip(wire, values);
    const std::span<std::byte> bytes = std::as_writable_bytes(std::span(values));
    Pack(wire, bytes);
    std::vector<float> part(2 * kWireBlock);
    Unpack(wire, bytes.subspan(WireBytes(wire, 3 * kWireBlock), WireBytes(wire, part.size())),
           part);
    for (size_t i = 0; i < part.size(); ++i) EXPECT_EQ(part[i], whole[3 * kWireBlock + i]);
  }
}

}  // namespace
}  // namespace lockstep
