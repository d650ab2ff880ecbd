// Some columns of a matrix, read without the others.
#include <random>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/runtime/weights/stored_tensor.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using testing::TestSeed;

// A tensor of every storage, of bytes that are random but for exponents, which stay small.
std::vector<std::pair<std::string, Tensor>> RandomTensors(int64_t rows, std::mt19937_64* random) {
  std::vector<std::pair<std::string, Tensor>> tensors;
  const auto add = [&](const std::string& name, Storage storage, WeightFormat format,
                       int64_t width) {
    return &tensors.emplace_back(name, Tensor(storage, format, {rows, width})).second;
  };
  const auto bytes = [&](int64_t count) {
    Bytes out(static_cast<size_t>(count));
    for (std::byte& value : out) value = static_cast<std::byte>((*random)() & 0x3f);
    return out;
  };
  Tensor* plain = add("BF16", Storage::kPlain, DType::kBF16, 601);
  plain->Set(&plain->info.data, "BF16", bytes(rows * 601 * 2));
  for (const std::string type : kGgmlTypes) {
    if (type == "NVFP4") continue;
    const WeightFormat format = *FormatOfGgml(type);
    Tensor* ggml = add(type, Storage::kGgml, format, 768);
    ggml->Set(&ggml->info.data, type,
              bytes(rows * static_cast<int64_t>(GgmlRowBytes(format, 768).value())));
  }
  for (const bool tiled : {false, true}) {
    Tensor* fp8 = add(tiled ? "FP8 tiles" : "FP8 rows", Storage::kFp8,
                      WeightFormat::Fp8(tiled ? 4 : kWholeRow), 600);
    fp8->Set(&fp8->info.data, "F8_E4M3", bytes(rows * 600));
    fp8->Set(&fp8->info.scales, "F32", bytes(tiled ? (rows + 127) / 128 * 5 * 4 : rows * 4));
  }
  Tensor* one_scale = add("FP8, one scale", Storage::kFp8, WeightFormat::Fp8(kWholeRow), 600);
  one_scale->Set(&one_scale->info.data, "F8_E4M3", bytes(rows * 600));
  one_scale->Set(&one_scale->info.scales, "F32", bytes(4));
  Tensor* mlx = add("MLX", Storage::kMlx, WeightFormat::Mlx(6, 64, DType::kBF16), 640);
  mlx->Set(&mlx->info.data, "U32", bytes(rows * 640 * 6 / 8));
  mlx->Set(&mlx->info.scales, "BF16", bytes(rows * 10 * 2));
  mlx->Set(&mlx->info.biases, "BF16", bytes(rows * 10 * 2));
  Tensor* nvfp4 = add("NVFP4", Storage::kNvfp4, WeightFormat::Of(Encoding::kNvfp4), 592);
  nvfp4->Set(&nvfp4->info.data, "U8", bytes(rows * 592 / 2));
  nvfp4->Set(&nvfp4->info.scales, "F8_E4M3", bytes(rows * 592 / 16));
  nvfp4->Set(&nvfp4->info.whole_scale, "F32", BytesOf(std::vector<float>{0.5f}));
  return tensors;
}

TEST(TranscodePart, SomeColumnsAreThoseOfTheWhole) {
  std::mt19937_64 random(TestSeed());
  constexpr int64_t kRows = 140;
  for (auto& [name, tensor] : RandomTensors(kRows, &random)) {
    const int64_t width = tensor.info.shape[1];
    const std::vector<float> whole = tensor.Decoded(0, kRows);
    const int64_t unit = ColumnUnit(tensor.info.format);
    for (const TensorPart& part :
         {TensorPart{{0, kRows}, {unit, 2 * unit}}, TensorPart{{130, 139}, {2 * unit, width}},
          TensorPart{{100, 101}, {0, unit}}, TensorPart{{5, 135}, {unit, width}},
          TensorPart{{0, kRows}, {unit, unit}}}) {
      Bytes portable;
      const Status status = tensor.Transcode(part, &portable);
      ASSERT_TRUE(status.ok()) << name << ": " << MessageOf(status);
      const int64_t inputs = part.columns.size();
      const size_t row_bytes = LayoutOf(tensor.info.format, inputs, 0).row_bytes;
      for (int64_t row = part.rows.begin; row < part.rows.end; ++row) {
        std::vector<float> values(static_cast<size_t>(inputs));
        DecodeRow(tensor.info.format,
                  portable.data() + static_cast<size_t>(row - part.rows.begin) * row_bytes, inputs,
                  0, 0, inputs, values.data());
        const auto begin = whole.begin() + row * width + part.columns.begin;
        ExpectSameBits({begin, begin + inputs}, values, name + ", row " + std::to_string(row));
      }
    }
  }
}

TEST(TranscodePart, ColumnsAreReadInWholeUnits) {
  const WeightFormat k = *FormatOfGgml("Q4_K");
  EXPECT_EQ(WholeColumnUnits(k, {0, 1}, 600), (Range{0, 256}));
  EXPECT_EQ(WholeColumnUnits(k, {255, 257}, 600), (Range{0, 512}));
  EXPECT_EQ(WholeColumnUnits(k, {256, 512}, 600), (Range{256, 512}));
  EXPECT_EQ(WholeColumnUnits(k, {513, 600}, 600), (Range{512, 600}));
  EXPECT_TRUE(WholeColumnUnits(k, {300, 300}, 600).empty());
  EXPECT_EQ(WholeColumnUnits(DType::kBF16, {384, 768}, 1536), (Range{384, 768}));
  EXPECT_EQ(WholeColumnUnits(WeightFormat::Fp8(4), {320, 640}, 1536), (Range{256, 640}));
}

}  // namespace
}  // namespace lockstep
