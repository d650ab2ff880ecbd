// From the rows of files to portable rows, bit for bit: against golden decodings, and against
// definitions written out again here.
#include "runtime/weights/transcode.h"

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/runtime/weights/stored_tensor.h"
#include "tests/support/golden.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using ::lockstep::testing::Golden;
using ::lockstep::testing::TestSeed;
using ::testing::HasSubstr;

TEST(Transcode, GgmlBlocksDecodeToTheGoldenBits) {
  const Golden golden(CasesPath("dequant_cases"));
  for (const std::string type : kGgmlTypes) {
    StatusOr<WeightFormat> format = FormatOfGgml(type);
    ASSERT_TRUE(format.ok()) << type;
    const std::vector<int64_t> raw_shape = golden.Shape(type + ".raw");
    const int64_t inputs = golden.Shape(type + ".f32")[1];
    const StatusOr<uint64_t> raw_bytes = GgmlRowBytes(*format, inputs);
    ASSERT_TRUE(raw_bytes.ok());
    ASSERT_EQ(static_cast<int64_t>(*raw_bytes), raw_shape[1]) << type;
    const Bytes raw = golden.Bytes(type + ".raw");
    std::vector<float> decoded(static_cast<size_t>(raw_shape[0] * inputs));
    for (int64_t row = 0; row < raw_shape[0]; ++row) {
      Bytes portable(LayoutOf(*format, inputs, 0).row_bytes, std::byte{0x5a});
      GgmlToPortable(*format, raw.data() + row * raw_shape[1], inputs, portable.data());
      DecodeRow(*format, portable.data(), inputs, 0, 0, inputs, decoded.data() + row * inputs);
    }
    ExpectSameBits(golden.Floats(type + ".f32"), decoded, type);
  }
}

TEST(Transcode, Fp8CodesAndRoundingsAreTheGoldenOnes) {
  const Golden golden(CasesPath("dequant_cases"));
  std::vector<float> all(256);
  for (int code = 0; code < 256; ++code) all[code] = Fp8E4m3ToFloat(static_cast<uint8_t>(code));
  ExpectSameBits(golden.Floats("F8_E4M3.all"), all, "e4m3");
  const std::vector<float> in = golden.Floats("F8_E4M3.round_in");
  const Bytes codes = golden.Bytes("F8_E4M3.round_saturated_codes");
  for (size_t i = 0; i < in.size(); ++i) {
    const uint8_t expected = static_cast<uint8_t>(codes[i]);
    const uint8_t actual = FloatToFp8E4m3(in[i]);
    if (std::isnan(in[i])) {
      EXPECT_TRUE(std::isnan(Fp8E4m3ToFloat(actual)));
    } else {
      EXPECT_EQ(actual, expected) << in[i];
    }
  }
}

TEST(Transcode, HalvesRoundToTheNearestAndTiesToEven) {
  for (uint32_t half = 0; half < 0x7c00; ++half) {
    const float value = HalfToFloat(static_cast<uint16_t>(half));
    const float next = half == 0x7bff ? 65536.0f : HalfToFloat(static_cast<uint16_t>(half + 1));
    const float middle = value + (next - value) / 2;  // exact
    const uint32_t even = half + (half & 1);
    ASSERT_EQ(FloatToHalf(value), half);
    ASSERT_EQ(FloatToHalf(-value), half | 0x8000);
    ASSERT_EQ(FloatToHalf(middle), even);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 0.0f)), half);
    ASSERT_EQ(FloatToHalf(std::nextafter(middle, 1e9f)), half + 1);
  }
  EXPECT_EQ(FloatToHalf(std::numeric_limits<float>::infinity()), 0x7c00);
  EXPECT_EQ(FloatToHalf(-1e30f), 0xfc00);
  EXPECT_TRUE(std::isnan(HalfToFloat(FloatToHalf(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(Transcode, MlxCasesDecodeToTheGoldenBits) {
  const Golden golden(CasesPath("mlx_affine_cases"));
  for (const int bits : {2, 4, 8}) {
    for (const int group : {32, 64, 128}) {
      const std::string name = "b" + std::to_string(bits) + "g" + std::to_string(group);
      Tensor tensor(Storage::kMlx, WeightFormat::Mlx(bits, group, DType::kBF16), {5, 256});
      tensor.Set(&tensor.info.data, "U32", golden.Bytes(name + ".weight"));
      tensor.Set(&tensor.info.scales, "BF16", golden.Bytes(name + ".scales"));
      tensor.Set(&tensor.info.biases, "BF16", golden.Bytes(name + ".biases"));
      ExpectSameBits(golden.Floats(name + ".decoded"), tensor.Decoded(0, 5), name);
    }
  }
}

// Random scales and codes: `bits` of the row's words, lowest first.
TEST(Transcode, MlxCodesOfEveryWidthAreABitString) {
  std::mt19937_64 random(TestSeed());
  for (const int bits : {2, 3, 4, 5, 6, 8}) {
    constexpr int64_t kRows = 3, kInputs = 192, kGroup = 64;
    std::vector<uint32_t> words(static_cast<size_t>(kRows * kInputs * bits / 32));
    for (uint32_t& word : words) word = static_cast<uint32_t>(random());
    std::vector<float> scales(kRows * kInputs / kGroup), biases(scales.size());
    for (float& scale : scales) scale = static_cast<float>(random() % 1000) / 7;
    for (float& bias : biases) bias = -static_cast<float>(random() % 1000) / 3;
    Tensor tensor(Storage::kMlx, WeightFormat::Mlx(bits, kGroup, DType::kF32), {kRows, kInputs});
    tensor.Set(&tensor.info.data, "U32", BytesOf(words));
    tensor.Set(&tensor.info.scales, "F32", BytesOf(scales));
    tensor.Set(&tensor.info.biases, "F32", BytesOf(biases));
    std::vector<float> expected;
    for (int64_t i = 0; i < kRows * kInputs; ++i) {
      int code = 0;
      for (int bit = 0; bit < bits; ++bit) {
        const int64_t at = i * bits + bit;
        code |= static_cast<int>(words[at / 32] >> (at % 32) & 1) << bit;
      }
      const float product = scales[i / kGroup] * static_cast<float>(code);
      expected.push_back(product + biases[i / kGroup]);
    }
    ExpectSameBits(expected, tensor.Decoded(0, kRows), std::to_string(bits) + " bits");
    const std::vector<float> last(expected.begin() + 2 * kInputs, expected.end());
    ExpectSameBits(last, tensor.Decoded(2, 1), "the last row");
  }
}

TEST(Transcode, Fp8RowsMultiplyToTheGoldenProducts) {
  const Golden golden(CasesPath("fp8_linear_cases"));
  for (const std::string name : {"0.", "1.", "2."}) {
    const std::vector<int64_t> shape = golden.Shape(name + "weight");
    Tensor tensor(Storage::kFp8, WeightFormat::Fp8(kWholeRow), shape);
    tensor.Set(&tensor.info.data, "F8_E4M3", golden.Bytes(name + "weight"));
    tensor.Set(&tensor.info.scales, "BF16", golden.Bytes(name + "weight_scale"));
    const std::vector<float> weights = tensor.Decoded(0, shape[0]);
    const std::vector<float> x = golden.Floats(name + "x");
    const std::vector<double> y = golden.Doubles(name + "y_w8a16_f64");
    for (int64_t i = 0; i < golden.Shape(name + "x")[0]; ++i) {
      for (int64_t n = 0; n < shape[0]; ++n) {
        double sum = 0, magnitude = 0;
        for (int64_t k = 0; k < shape[1]; ++k) {
          sum += double{x[i * shape[1] + k]} * weights[n * shape[1] + k];
          magnitude += std::abs(double{x[i * shape[1] + k]} * weights[n * shape[1] + k]);
        }
        ASSERT_NEAR(sum, y[i * shape[0] + n], 1e-13 * magnitude) << name << i << " " << n;
      }
    }
  }
}

// Scales per row, per tile of 128 x 128 and for the whole tensor, of every plain type.
TEST(Transcode, Fp8ScalesArePerRowPerTileOrOne) {
  std::mt19937_64 random(TestSeed());
  constexpr int64_t kRows = 300, kInputs = 200;
  std::vector<uint8_t> codes(kRows * kInputs);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % 0x7f | (random() & 0x80));
  const auto check = [&](int16_t group, size_t count, const auto& index_of) {
    for (const std::string type : {"F32", "F16", "BF16"}) {
      std::vector<float> scales(count);
      Bytes stored;
      for (float& scale : scales) {
        const float value = static_cast<float>(random() % 100 + 1) / 8;
        scale = type == "BF16" ? Bf16ToFloat(FloatToBf16(value)) : value;
        const uint16_t bits = type == "BF16" ? FloatToBf16(value) : FloatToHalf(value);
        const Bytes one = type == "F32" ? BytesOf(std::vector<float>{value})
                                        : BytesOf(std::vector<uint16_t>{bits});
        stored.insert(stored.end(), one.begin(), one.end());
      }
      Tensor tensor(Storage::kFp8, WeightFormat::Fp8(group), {kRows, kInputs});
      tensor.Set(&tensor.info.data, "F8_E4M3", BytesOf(codes));
      tensor.Set(&tensor.info.scales, type, stored);
      std::vector<float> expected;
      for (int64_t i = 0; i < kRows * kInputs; ++i)
        expected.push_back(scales[index_of(i / kInputs, i % kInputs)] * Fp8E4m3ToFloat(codes[i]));
      ExpectSameBits(expected, tensor.Decoded(0, kRows), type);
      // A range that begins inside one tile and ends inside the next.
      const std::vector<float> some(expected.begin() + 120 * kInputs,
                                    expected.begin() + 140 * kInputs);
      ExpectSameBits(some, tensor.Decoded(120, 20), type);
    }
  };
  check(kWholeRow, kRows, [](int64_t row, int64_t) { return static_cast<size_t>(row); });
  check(kWholeRow, 1, [](int64_t, int64_t) { return size_t{0}; });
  check(4, 6, [](int64_t row, int64_t column) {
    return static_cast<size_t>(row / 128 * 2 + column / 128);
  });
}

Tensor Nvfp4(int64_t rows, int64_t inputs, std::mt19937_64* random, std::vector<uint8_t>* codes,
             std::vector<uint8_t>* scales, float whole) {
  codes->resize(static_cast<size_t>(rows * inputs / 2));
  scales->resize(static_cast<size_t>(rows * inputs / 16));
  for (uint8_t& code : *codes) code = static_cast<uint8_t>((*random)());
  for (uint8_t& scale : *scales) scale = static_cast<uint8_t>((*random)() % 0x7f);
  Tensor tensor(Storage::kNvfp4, WeightFormat::Of(Encoding::kNvfp4), {rows, inputs});
  tensor.Set(&tensor.info.data, "U8", BytesOf(*codes));
  tensor.Set(&tensor.info.scales, "F8_E4M3", BytesOf(*scales));
  tensor.Set(&tensor.info.whole_scale, "F32", BytesOf(std::vector<float>{whole}));
  return tensor;
}

TEST(Transcode, Nvfp4OfBothFamilies) {
  std::mt19937_64 random(TestSeed());
  const float magnitudes[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  for (const bool divides : {false, true}) {
    for (const int64_t inputs : {int64_t{64}, int64_t{48}, int64_t{16}}) {
      std::vector<uint8_t> codes, scales;
      const float whole = divides ? 1234.5f : 0.0123f;
      Tensor tensor = Nvfp4(5, inputs, &random, &codes, &scales, whole);
      tensor.info.whole_scale_divides = divides;
      std::vector<float> expected;
      for (int64_t i = 0; i < 5 * inputs; ++i) {
        const int code = codes[i / 2] >> (i % 2 * 4) & 15;
        // In double: a quotient of two floats, rounded twice, is the quotient rounded once.
        const double exact = Fp8E4m3ToFloat(scales[i / 16]);
        const auto scale = static_cast<float>(divides ? exact / whole : exact * whole);
        const float magnitude = scale * magnitudes[code & 7];
        expected.push_back(code > 8 ? -magnitude : magnitude);
      }
      ExpectSameBits(expected, tensor.Decoded(0, 5), std::to_string(inputs));
    }
  }
}

TEST(Transcode, PlainRowsAndVectorsAreCopied) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  Tensor matrix(Storage::kPlain, DType::kF32, {3, 2});
  matrix.Set(&matrix.info.data, "F32", BytesOf(values));
  ExpectSameBits({3, 4, 5, 6}, matrix.Decoded(1, 2), "matrix");
  Tensor vector(Storage::kPlain, DType::kF32, {6});
  vector.Set(&vector.info.data, "F32", BytesOf(values));
  ExpectSameBits(values, vector.Decoded(0, 1), "vector");
  ExpectSameBits({}, vector.Decoded(0, 0), "nothing");
}

// Which number of a tensor of each kind is made infinite or NaN.
TEST(Transcode, RefusesNumbersThatAreNotFinite) {
  const auto error = [](Tensor tensor) { return tensor.Error(); };
  for (const std::string name : kGgmlTypes) {
    const WeightFormat format = *FormatOfGgml(name);
    const int64_t inputs = 2 * GgmlBlockWeights(format);
    const uint64_t bytes = *GgmlRowBytes(format, inputs);
    int refused = 0;
    // Two bytes of ones are NaN in a half, in an e4m3 or e8m0 scale, and nothing among codes.
    for (uint64_t at = 0; at + 1 < bytes; ++at) {
      Bytes raw(bytes);
      raw[at] = raw[at + 1] = std::byte{0xff};
      Tensor tensor(Storage::kGgml, format, {1, inputs});
      tensor.Set(&tensor.info.data, name, raw);
      const std::string message = tensor.Error();
      if (message.empty()) continue;
      EXPECT_THAT(message, HasSubstr("tensor w holds values or scales that are not finite"));
      ++refused;
    }
    if (name != "NVFP4") {  // ggml reads NaN as zero there
      EXPECT_GE(refused, 2) << name;
    }
  }
  for (const auto& [type, raw] : std::vector<std::pair<std::string, Bytes>>{
           {"F32", BytesOf(std::vector<float>{1, INFINITY})},
           {"BF16", BytesOf(std::vector<uint16_t>{0x7f80, 0})},
           {"F16", BytesOf(std::vector<uint16_t>{0, 0xfc01})}}) {
    Tensor tensor(Storage::kPlain, *FormatOfGgml(type), {1, 2});
    tensor.Set(&tensor.info.data, type, raw);
    EXPECT_THAT(tensor.Error(), HasSubstr("not finite")) << type;
  }
  for (const bool code : {false, true}) {
    Tensor tensor(Storage::kFp8, WeightFormat::Fp8(kWholeRow), {1, 2});
    tensor.Set(&tensor.info.data, "F8_E4M3", BytesOf(std::vector<uint8_t>{1, uint8_t(code * 255)}));
    tensor.Set(&tensor.info.scales, "F32", BytesOf(std::vector<float>{code ? 1 : NAN}));
    EXPECT_THAT(error(std::move(tensor)), HasSubstr("not finite"));
  }
  for (const bool bias : {false, true}) {
    Tensor tensor(Storage::kMlx, WeightFormat::Mlx(4, 32, DType::kF16), {1, 32});
    tensor.Set(&tensor.info.data, "U32", Bytes(16));
    tensor.Set(&tensor.info.scales, "F16",
               BytesOf(std::vector<uint16_t>{uint16_t(!bias * 0x7e00)}));
    tensor.Set(&tensor.info.biases, "F16", BytesOf(std::vector<uint16_t>{uint16_t(bias * 0x7c00)}));
    EXPECT_THAT(error(std::move(tensor)), HasSubstr("not finite"));
  }
  std::mt19937_64 random(TestSeed());
  std::vector<uint8_t> codes, scales;
  for (const float whole : {0.0f, -1.0f, INFINITY, NAN}) {
    Tensor wrong = Nvfp4(1, 32, &random, &codes, &scales, whole);
    wrong.info.whole_scale_divides = true;
    EXPECT_THAT(wrong.Error(), HasSubstr("tensor w has")) << whole;
    wrong.info.whole_scale_divides = false;
    EXPECT_EQ(wrong.Error().empty(), whole == 0) << whole;
  }
  Tensor nan = Nvfp4(1, 32, &random, &codes, &scales, 1);
  nan.Set(&nan.info.scales, "F8_E4M3", BytesOf(std::vector<uint8_t>{1, 0x7f}));
  EXPECT_THAT(nan.Error(), HasSubstr("not finite"));
}

// Codes that are small enough pass with the same scales.
TEST(Transcode, RefusesFiniteScalesThatMakeInfiniteWeights) {
  const auto expect = [](Tensor tensor, bool finite, const char* what) {
    const std::string message = tensor.Error();
    if (finite) {
      EXPECT_EQ(message, "") << what;
    } else {
      EXPECT_THAT(message, HasSubstr("tensor w holds scales that make weights too large")) << what;
      EXPECT_THAT(message, HasSubstr("first in row 1")) << what;
    }
  };
  for (const bool finite : {true, false}) {
    Tensor fp8(Storage::kFp8, WeightFormat::Fp8(kWholeRow), {2, 1});
    const uint8_t largest = finite ? 0x38 : 0x7e;  // 1, 448
    fp8.Set(&fp8.info.data, "F8_E4M3", BytesOf(std::vector<uint8_t>{0x38, largest}));
    fp8.Set(&fp8.info.scales, "F32", BytesOf(std::vector<float>{1e38f, 1e38f}));
    expect(std::move(fp8), finite, "fp8");

    Tensor mlx(Storage::kMlx, WeightFormat::Mlx(4, 32, DType::kF32), {2, 32});
    std::vector<uint32_t> words(8, 0x11111111);
    words[7] = finite ? 0x11111111 : 0x91111111;
    mlx.Set(&mlx.info.data, "U32", BytesOf(words));
    mlx.Set(&mlx.info.scales, "F32", BytesOf(std::vector<float>{1e38f, 1e38f}));
    mlx.Set(&mlx.info.biases, "F32", BytesOf(std::vector<float>{1e38f, 1e38f}));
    expect(std::move(mlx), finite, "mlx");

    Bytes blocks(2 * 17);
    blocks[17] = std::byte{254};  // 2^127
    blocks[18] = finite ? std::byte{0x02} : std::byte{0x07};
    Tensor mxfp4(Storage::kGgml, *FormatOfGgml("MXFP4"), {2, 32});
    mxfp4.Set(&mxfp4.info.data, "MXFP4", blocks);
    expect(std::move(mxfp4), finite, "mxfp4");

    for (const bool divides : {false, true}) {
      Tensor nvfp4(Storage::kNvfp4, WeightFormat::Of(Encoding::kNvfp4), {2, 16});
      nvfp4.Set(&nvfp4.info.data, "U8", Bytes(16, std::byte{0x22}));  // ones
      nvfp4.Set(&nvfp4.info.scales, "F8_E4M3", BytesOf(std::vector<uint8_t>{0x38, largest}));
      nvfp4.Set(&nvfp4.info.whole_scale, "F32",
                BytesOf(std::vector<float>{divides ? 1e-38f : 1e38f}));
      nvfp4.info.whole_scale_divides = divides;
      expect(std::move(nvfp4), finite, divides ? "nvfp4 divided" : "nvfp4");
    }
  }
}

TEST(Transcode, RefusesArraysOfOtherSizes) {
  std::mt19937_64 random(TestSeed());
  std::vector<uint8_t> codes, scales;
  const auto fresh = [&] { return Nvfp4(4, 64, &random, &codes, &scales, 1); };
  ASSERT_EQ(fresh().Error(), "");
  for (StoredArray TensorInfo::*array :
       {&TensorInfo::data, &TensorInfo::scales, &TensorInfo::whole_scale}) {
    for (const int64_t change : {-1, 1}) {
      Tensor tensor = fresh();
      (tensor.info.*array).bytes += static_cast<uint64_t>(change);
      EXPECT_THAT(tensor.Error(), HasSubstr("tensor w is")) << change;
    }
    Tensor tensor = fresh();
    tensor.info.*array = {};
    if (array != &TensorInfo::data) {
      EXPECT_THAT(tensor.Error(), HasSubstr("tensor w is"));
    }
  }
  Tensor odd = fresh();
  odd.info.shape = {4, 63};
  EXPECT_THAT(odd.Error(), HasSubstr("cannot be read as NVFP4"));
  for (const std::vector<int64_t>& shape : std::vector<std::vector<int64_t>>{
           {int64_t{1} << 40, int64_t{1} << 40}, {-1, 64}, {1, int64_t{1} << 62}, {2, 2, 64}, {}}) {
    Tensor tensor = fresh();
    tensor.info.shape = shape;
    const StatusOr<PartRanges> ranges = RangesOf(tensor.info, "w", WholeRows(tensor.info, {0, 1}));
    ASSERT_FALSE(ranges.ok());
    EXPECT_THAT(MessageOf(ranges.status()), HasSubstr("tensor w has shape"));
  }
  for (const Range rows : {Range{4, 5}, {-1, 0}, {0, 5}, {1, 0}}) {
    EXPECT_FALSE(RangesOf(fresh().info, "w", WholeRows(fresh().info, rows)).ok())
        << rows.begin << " " << rows.end;
  }
  for (const Range columns : {Range{0, 65}, {-32, 64}, {0, 16}, {16, 64}, {64, 0}}) {
    EXPECT_FALSE(RangesOf(fresh().info, "w", {{0, 1}, columns}).ok())
        << columns.begin << " " << columns.end;
  }
  Tensor kind(Storage::kPlain, DType::kF32, {1, 1});
  kind.Set(&kind.info.data, "I32", Bytes(4));
  EXPECT_THAT(kind.Error(), HasSubstr("tensor w is I32"));
  Tensor blocks(Storage::kGgml, *FormatOfGgml("Q4_K"), {1, 128});
  blocks.Set(&blocks.info.data, "Q4_K", Bytes(72));
  EXPECT_THAT(blocks.Error(), HasSubstr("tensor w: rows of 128 weights cannot be Q4_K"));
}

TEST(Transcode, GgmlTypesAreKnownByNumberAndName) {
  for (const auto& [number, name] : std::vector<std::pair<uint32_t, std::string>>{{0, "F32"},
                                                                                  {1, "F16"},
                                                                                  {30, "BF16"},
                                                                                  {2, "Q4_0"},
                                                                                  {3, "Q4_1"},
                                                                                  {6, "Q5_0"},
                                                                                  {7, "Q5_1"},
                                                                                  {8, "Q8_0"},
                                                                                  {10, "Q2_K"},
                                                                                  {11, "Q3_K"},
                                                                                  {12, "Q4_K"},
                                                                                  {13, "Q5_K"},
                                                                                  {14, "Q6_K"},
                                                                                  {20, "IQ4_NL"},
                                                                                  {23, "IQ4_XS"},
                                                                                  {39, "MXFP4"},
                                                                                  {40, "NVFP4"}}) {
    const StatusOr<WeightFormat> format = FormatOfGgml(number);
    ASSERT_TRUE(format.ok()) << name;
    EXPECT_EQ(format->Name(), name);
  }
  EXPECT_THAT(MessageOf(FormatOfGgml(16).status()), HasSubstr("IQ2_XXS"));
  EXPECT_THAT(MessageOf(FormatOfGgml(4).status()), HasSubstr("ggml type number 4 is not read"));
  EXPECT_THAT(MessageOf(FormatOfGgml(4000000000u).status()), HasSubstr("it reads F32, F16, BF16"));
  EXPECT_FALSE(GgmlRowBytes(WeightFormat::Fp8(kWholeRow), 32).ok());
}

}  // namespace
}  // namespace lockstep
