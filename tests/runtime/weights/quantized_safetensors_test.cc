// Quantized tensors in safetensors files: recognised by their arrays, refused by name when those do
// not go together, and worth exactly what their codes and scales say.
#include <bit>
#include <cmath>
#include <random>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/checkpoint.h"
#include "runtime/weights/stored_rows.h"
#include "tests/support/safetensors_writer.h"
#include "tests/support/seed.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using testing::BytesOf;
using ::testing::HasSubstr;
using testing::SafetensorsWriter;
using testing::TemporaryDirectory;

// By the definition of the format, not by the code under test.
float E4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
  return static_cast<float>(code & 0x80 ? -magnitude : magnitude);
}

float E2m1(int code) {
  constexpr float kValues[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};
  return code & 8 ? -kValues[code & 7] : kValues[code & 7];
}

uint16_t Bf16(float value) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16); }

class Quantized : public ::testing::Test {
 protected:
  std::vector<uint8_t> Codes(int64_t count, bool finite) {
    std::vector<uint8_t> codes(static_cast<size_t>(count));
    for (uint8_t& code : codes) {
      do {
        code = static_cast<uint8_t>(random_());
      } while (finite && (code & 0x7f) == 0x7f);
    }
    return codes;
  }
  std::vector<float> Scales(int64_t count) {
    std::vector<float> scales(static_cast<size_t>(count));
    // Exact in bfloat16.
    for (float& scale : scales) scale = static_cast<float>(1 + random_() % 200) / 256;
    return scales;
  }
  StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& config = "{}") {
    directory_.Write("config.json", config);
    directory_.Write("model.safetensors", writer_.File());
    return Checkpoint::Open(directory_.path());
  }
  std::string Error(const std::string& config = "{}") {
    const auto opened = Open(config);
    EXPECT_FALSE(opened.ok());
    if (opened.ok()) return "";
    EXPECT_EQ(ExitCode(opened.status()), 3);
    return MessageOf(opened.status());
  }
  // The weights of a tensor, as the loader reads them.
  std::vector<float> Values(const Checkpoint& checkpoint, const std::string& name) {
    const TensorInfo* info = checkpoint.Find(name);
    EXPECT_NE(info, nullptr) << name;
    if (info == nullptr) return {};
    const int64_t outputs = info->shape[0], inputs = info->shape[1];
    const uint64_t row_bytes = LayoutOf(info->format, inputs, 0).row_bytes;
    std::vector<std::byte> rows(row_bytes * static_cast<uint64_t>(outputs));
    StoredRowReader reader({});
    const Status status = reader.Read(*info, name, {0, outputs}, rows.data());
    EXPECT_TRUE(status.ok()) << status;
    std::vector<float> values(static_cast<size_t>(outputs * inputs));
    for (int64_t row = 0; row < outputs; ++row) {
      DecodeRow(info->format, rows.data() + static_cast<uint64_t>(row) * row_bytes, inputs, 0, 0,
                inputs, values.data() + row * inputs);
    }
    return values;
  }

  TemporaryDirectory directory_;
  SafetensorsWriter writer_;
  std::mt19937_64 random_{testing::TestSeed()};
};

TEST_F(Quantized, Fp8WithAScalePerRowInAnyTypeAndShape) {
  const auto codes = Codes(3 * 40, true);
  const auto scales = Scales(3);
  std::vector<uint16_t> halves;
  for (const float scale : scales) halves.push_back(Bf16(scale));
  writer_.Add("a.weight", "F8_E4M3", {3, 40}, BytesOf(codes));
  writer_.Add("a.weight_scale", "F32", {3, 1}, BytesOf(scales));
  writer_.Add("a.input_scale", "F32", {}, BytesOf<float>({1}));
  writer_.Add("b.weight", "F8_E4M3", {3, 40}, BytesOf(codes));
  writer_.Add("b.weight_scale", "BF16", {3}, BytesOf(halves));
  writer_.Add("c.weight", "F8_E4M3", {3, 40}, BytesOf(codes));
  writer_.Add("c.weight_scale", "F32", {}, BytesOf<float>({scales[0]}));
  const auto opened = Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->tensors().size(), 3u);
  std::vector<float> rows, whole;
  for (size_t i = 0; i < codes.size(); ++i) {
    rows.push_back(scales[i / 40] * E4m3(codes[i]));
    whole.push_back(scales[0] * E4m3(codes[i]));
  }
  EXPECT_EQ(Values(**opened, "a.weight"), rows);
  EXPECT_EQ(Values(**opened, "b.weight"), rows);
  EXPECT_EQ(Values(**opened, "c.weight"), whole);
}

TEST_F(Quantized, Fp8WithAScalePerTile) {
  constexpr int64_t kOutputs = 260, kInputs = 300;
  const auto codes = Codes(kOutputs * kInputs, true);
  const auto scales = Scales(3 * 3);
  writer_.Add("a.weight", "F8_E4M3", {kOutputs, kInputs}, BytesOf(codes));
  writer_.Add("a.weight_scale_inv", "F32", {3, 3}, BytesOf(scales));
  const auto opened =
      Open(R"({"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}})");
  ASSERT_TRUE(opened.ok()) << opened.status();
  const auto values = Values(**opened, "a.weight");
  for (int64_t row = 0; row < kOutputs; ++row) {
    for (int64_t i = 0; i < kInputs; ++i) {
      ASSERT_EQ(values[row * kInputs + i],
                scales[row / 128 * 3 + i / 128] * E4m3(codes[row * kInputs + i]))
          << row << " " << i;
    }
  }
}

TEST_F(Quantized, Nvfp4OfModelOptAndOfCompressedTensors) {
  constexpr int64_t kOutputs = 5, kInputs = 96;
  const auto codes = Codes(kOutputs * kInputs / 2, false);
  auto scales = Codes(kOutputs * kInputs / 16, true);
  for (uint8_t& scale : scales) scale &= 0x7f;
  const float whole = 0.0375f;
  writer_.Add("a.weight", "U8", {kOutputs, kInputs / 2}, BytesOf(codes));
  writer_.Add("a.weight_scale", "F8_E4M3", {kOutputs, kInputs / 16}, BytesOf(scales));
  writer_.Add("a.weight_scale_2", "F32", {}, BytesOf<float>({whole}));
  writer_.Add("b.weight_packed", "U8", {kOutputs, kInputs / 2}, BytesOf(codes));
  writer_.Add("b.weight_scale", "F8_E4M3", {kOutputs, kInputs / 16}, BytesOf(scales));
  writer_.Add("b.weight_global_scale", "F32", {1}, BytesOf<float>({whole}));
  writer_.Add("b.input_global_scale", "F32", {1}, BytesOf<float>({3}));
  writer_.Add("c.weight", "BF16", {1, 2}, BytesOf<uint16_t>({Bf16(1), Bf16(2)}));
  const auto opened = Open(R"({"quantization_config":{"quant_method":"modelopt"}})");
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->tensors().size(), 3u);
  const auto a = Values(**opened, "a.weight");
  const auto b = Values(**opened, "b.weight");
  for (int64_t i = 0; i < kOutputs * kInputs; ++i) {
    const float code = E2m1(codes[i / 2] >> (i % 2 * 4) & 15);
    const float scale = E4m3(scales[i / 16]);
    ASSERT_EQ(a[i], whole * scale * code) << i;
    // Rounded from double, a quotient of floats is what a division of floats gives.
    ASSERT_EQ(b[i], static_cast<float>(static_cast<double>(scale) / whole) * code) << i;
  }
  EXPECT_EQ(Values(**opened, "c.weight"), (std::vector<float>{1, 2}));
}

TEST_F(Quantized, MlxWithItsOwnSettingsPerModuleAndStacksOfExperts) {
  // 4 bits in groups of 64 by default; the stack has 8 bits in groups of 32.
  std::vector<uint32_t> words(2 * 16), stack(3 * 2 * 8);
  for (uint32_t& word : words) word = static_cast<uint32_t>(random_());
  for (uint32_t& word : stack) word = static_cast<uint32_t>(random_());
  const auto scales = Scales(2 * 2), biases = Scales(2 * 2);
  const auto stack_scales = Scales(3 * 2), stack_biases = Scales(3 * 2);
  writer_.Add("m.a.weight", "U32", {2, 16}, BytesOf(words));
  writer_.Add("m.a.scales", "F32", {2, 2}, BytesOf(scales));
  writer_.Add("m.a.biases", "F32", {2, 2}, BytesOf(biases));
  writer_.Add("m.switch_mlp.up_proj.weight", "U32", {3, 2, 8}, BytesOf(stack));
  writer_.Add("m.switch_mlp.up_proj.scales", "F32", {3, 2, 1}, BytesOf(stack_scales));
  writer_.Add("m.switch_mlp.up_proj.biases", "F32", {3, 2, 1}, BytesOf(stack_biases));
  const auto opened = Open(R"({"quantization":{"group_size":64,"bits":4,"mode":"affine",)"
                           R"("m.switch_mlp.up_proj":{"group_size":32,"bits":8}}})");
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->tensors().size(), 4u);
  const auto a = Values(**opened, "m.a.weight");
  for (size_t i = 0; i < 2 * 128; ++i) {
    const auto code = static_cast<float>(words[i / 8] >> (i % 8 * 4) & 15);
    ASSERT_EQ(a[i], scales[i / 64] * code + biases[i / 64]) << i;
  }
  for (size_t expert = 0; expert < 3; ++expert) {
    const auto values = Values(**opened, "m.experts." + std::to_string(expert) + ".up_proj.weight");
    for (size_t i = 0; i < 64; ++i) {
      const size_t at = expert * 64 + i;
      const auto code = static_cast<float>(stack[at / 4] >> (at % 4 * 8) & 255);
      ASSERT_EQ(values[i], stack_scales[at / 32] * code + stack_biases[at / 32]) << at;
    }
  }
}

TEST_F(Quantized, ScalesThatAreMissingOrMisshapenAreNamed) {
  writer_.Add("a.weight", "F8_E4M3", {2, 4}, std::string(8, '\1'));
  EXPECT_THAT(Error(), AllOf(HasSubstr("a.weight"), HasSubstr("a.weight_scale is missing")));
  writer_.Add("a.weight_scale", "F32", {3, 1}, std::string(12, '\0'));
  EXPECT_THAT(Error(), AllOf(HasSubstr("a.weight_scale"), HasSubstr("[3, 1]"),
                             HasSubstr("one scale per row")));
  writer_ = {};
  writer_.Add("a.weight", "F8_E4M3", {2, 4}, std::string(8, '\1'));
  writer_.Add("a.weight_scale", "U8", {2, 1}, std::string(2, '\0'));
  EXPECT_THAT(Error(), HasSubstr("scales of F32, BF16 or F16"));
  writer_ = {};
  writer_.Add("a.weight", "F8_E4M3", {2, 4}, std::string(8, '\1'));
  writer_.Add("a.weight_scale_inv", "F32", {2, 2}, std::string(16, '\0'));
  EXPECT_THAT(Error(), HasSubstr("one scale per 128 x 128"));
}

TEST_F(Quantized, Nvfp4PartsThatDoNotGoTogetherAreNamed) {
  writer_.Add("a.weight_packed", "U8", {2, 16}, std::string(32, '\1'));
  EXPECT_THAT(Error(), HasSubstr("a.weight_scale is missing"));
  writer_.Add("a.weight_scale", "F8_E4M3", {2, 3}, std::string(6, '\1'));
  EXPECT_THAT(Error(), AllOf(HasSubstr("a.weight_scale"), HasSubstr("per 16 weights")));
  writer_ = {};
  writer_.Add("a.weight_packed", "I32", {2, 4}, std::string(32, '\1'));
  EXPECT_THAT(Error(), HasSubstr("reads NVFP4"));
}

TEST_F(Quantized, MlxSettingsThatContradictTheArraysAreNamed) {
  writer_.Add("a.weight", "U32", {2, 16}, std::string(128, '\1'));
  EXPECT_THAT(Error(), HasSubstr("a.scales is missing"));
  writer_.Add("a.scales", "F16", {2, 2}, std::string(8, '\1'));
  EXPECT_THAT(Error(), HasSubstr("a.biases is missing"));
  writer_.Add("a.biases", "F16", {2, 2}, std::string(8, '\1'));
  EXPECT_THAT(Error(), HasSubstr("group_size is 0"));
  EXPECT_THAT(Error(R"({"quantization":{"group_size":64,"bits":8}})"),
              AllOf(HasSubstr("bits is 8"), HasSubstr("hold 4")));
  EXPECT_THAT(Error(R"({"quantization":{"group_size":128,"bits":4,"mode":"mxfp4"}})"),
              HasSubstr("mode is not affine"));
  EXPECT_TRUE(Open(R"({"quantization":{"group_size":64,"bits":4}})").ok());
}

// Modules without settings of their own take those of the whole. The test has no clock: if the
// settings were copied for every one of them, it would take minutes.
TEST_F(Quantized, ManyModulesBesideManySettingsTakeNoTime) {
  constexpr int kModules = 40'000;
  std::string config = R"({"quantization":{"group_size":32,"bits":4)";
  for (int i = 0; i < kModules; ++i) {
    const std::string module = absl::StrFormat("m.%d", i);
    writer_.Add(module + ".weight", "U32", {1, 4}, std::string(16, '\1'));
    writer_.Add(module + ".scales", "F16", {1, 1}, std::string(2, '\1'));
    writer_.Add(module + ".biases", "F16", {1, 1}, std::string(2, '\1'));
    config += absl::StrFormat(R"(,"model.layers.%d.other":{"group_size":64,"bits":8})", i);
  }
  const auto opened = Open(config + "}}");
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_EQ((*opened)->tensors().size(), kModules);
}

// They cost a file nothing but their names.
TEST_F(Quantized, StacksOfMatricesWithoutBytesAreRefused) {
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{4096, 0, 0}, {4096, 0, 8}, {3, 8, 0}}) {
    writer_ = {};
    writer_.Add("m.switch_mlp.up_proj.weight", "BF16", shape, "");
    EXPECT_THAT(Error(), AllOf(HasSubstr("model.safetensors: tensor m.switch_mlp.up_proj.weight"),
                               HasSubstr("without bytes"), HasSubstr("fetch it again")));
  }
  writer_ = {};
  writer_.Add("m.switch_mlp.up_proj.weight", "U32", {2, 0, 4}, "");
  writer_.Add("m.switch_mlp.up_proj.scales", "F16", {2, 0, 1}, "");
  writer_.Add("m.switch_mlp.up_proj.biases", "F16", {2, 0, 1}, "");
  EXPECT_THAT(Error(R"({"quantization":{"group_size":32,"bits":4}})"), HasSubstr("without bytes"));
}

TEST_F(Quantized, AllStacksTogetherAreBounded) {
  constexpr int64_t kStack = 4096;
  for (int64_t i = 0; i <= 500'000 / kStack; ++i) {
    writer_.Add(absl::StrFormat("m.%d.switch_mlp.up_proj", i), "U8", {kStack, 1, 1},
                std::string(kStack, '\1'));
  }
  EXPECT_THAT(Error(),
              AllOf(HasSubstr("model.safetensors: with tensor m."), HasSubstr("more than 500000")));
}

TEST_F(Quantized, OtherMethodsAreRefusedByName) {
  EXPECT_THAT(Error(R"({"quantization_config":{"quant_method":"awq"}})"), HasSubstr("'awq'"));
}

TEST_F(Quantized, ScalesThatAreNotNumbersAreRefused) {
  writer_.Add("a.weight", "F8_E4M3", {1, 4}, std::string(4, '\1'));
  writer_.Add("a.weight_scale", "F32", {1, 1}, BytesOf<float>({INFINITY}));
  const auto opened = Open();
  ASSERT_TRUE(opened.ok()) << opened.status();
  StoredRowReader reader({});
  std::byte row[64];
  const Status status = reader.Read(*(*opened)->Find("a.weight"), "a.weight", {0, 1}, row);
  EXPECT_THAT(MessageOf(status), AllOf(HasSubstr("a.weight"), HasSubstr("not finite")));
}

}  // namespace
}  // namespace lockstep
