// The portable layout: sizes, cuts, phases, and matrices of it.
#include "runtime/tensor/weight_format.h"

#include <bit>
#include <random>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/tensor/matrix.h"
#include "tests/runtime/tensor/random_rows.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

std::vector<uint32_t> Decoded(const WeightFormat& format, const std::vector<std::byte>& row,
                              int64_t inputs, int64_t phase, int64_t begin, int64_t end) {
  std::vector<float> values(static_cast<size_t>(end - begin));
  DecodeRow(format, row.data(), inputs, phase, begin, end - begin, values.data());
  std::vector<uint32_t> bits(values.size());
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = std::bit_cast<uint32_t>(values[i]);
  return bits;
}

TEST(WeightFormat, LayoutsHaveTheSizesOfTheirPlanes) {
  const auto bytes = [](const WeightFormat& format, int64_t inputs, int64_t phase = 0) {
    return LayoutOf(format, inputs, phase).row_bytes;
  };
  EXPECT_EQ(bytes(DType::kF32, 33), 132u);
  EXPECT_EQ(bytes(DType::kBF16, 33), 66u);
  EXPECT_EQ(bytes(WeightFormat::Fp8(kWholeRow), 33), 4u + 33);
  EXPECT_EQ(bytes(WeightFormat::Fp8(4), 130), 8u + 130);
  EXPECT_EQ(bytes(WeightFormat::Fp8(4), 96, 3), 8u + 96);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ4_0), 64), 2 * 18u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ4_1), 64), 2 * 20u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ5_0), 64), 2 * 22u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ5_1), 64), 2 * 24u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ8_0), 64), 2 * 34u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ2_K), 256), 84u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ3_K), 256), 114u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ4_K), 256), 148u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ5_K), 256), 180u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ6_K), 256), 210u);
  // Two groups if the row begins inside one and goes on into the next.
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ4_K), 256, 1), 4u + 148);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kQ4_K), 32, 7), 4u + 2 + 16);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kIq4Nl), 32), 18u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kIq4Xs), 256), 138u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kMxfp4), 32), 17u);
  EXPECT_EQ(bytes(WeightFormat::Of(Encoding::kNvfp4), 48), 4u + 2 * 18);
  EXPECT_EQ(bytes(WeightFormat::Mlx(4, 64, DType::kBF16), 128), 2 * 4u + 64);
  EXPECT_EQ(bytes(WeightFormat::Mlx(6, 32, DType::kF32), 128), 4 * 8u + 96);
  for (const WeightFormat& format : testing::AllFormats()) EXPECT_EQ(bytes(format, 0), 0u);
}

TEST(WeightFormat, PlainNumbersAndScaledRowsAreCutAnywhereOthersBetweenBlocks) {
  for (const WeightFormat& format : testing::AllFormats()) {
    const bool anywhere = format.plain() || format == WeightFormat::Fp8(kWholeRow);
    EXPECT_EQ(format.cut_weights(), anywhere ? 1 : 32) << format.Name();
  }
}

TEST(WeightFormat, NamesSayWhatMatters) {
  EXPECT_EQ(WeightFormat(DType::kBF16).Name(), "BF16");
  EXPECT_EQ(WeightFormat::Of(Encoding::kQ4_K).Name(), "Q4_K");
  EXPECT_EQ(WeightFormat::Fp8(kWholeRow).Name(), "FP8");
  EXPECT_EQ(WeightFormat::Fp8(4).Name(), "FP8, tiles of 128");
  EXPECT_EQ(WeightFormat::Mlx(4, 64, DType::kBF16).Name(), "MLX 4 bits, group 64");
}

// Any range of a row decodes to the same bits as the whole.
TEST(WeightFormat, PartsOfARowDecodeToTheBitsOfTheWhole) {
  std::mt19937_64 random(testing::TestSeed());
  for (const WeightFormat& format : testing::AllFormats()) {
    const int64_t inputs = 1024;
    const std::vector<std::byte> row = testing::RandomRow(format, inputs, 0, &random);
    const std::vector<uint32_t> whole = Decoded(format, row, inputs, 0, 0, inputs);
    for (int trial = 0; trial < 20; ++trial) {
      const auto begin = static_cast<int64_t>(random() % 1024);
      const int64_t end = begin + static_cast<int64_t>(random() % (1025 - begin));
      EXPECT_EQ(Decoded(format, row, inputs, 0, begin, end),
                std::vector<uint32_t>(whole.begin() + begin, whole.begin() + end))
          << format.Name() << " [" << begin << ", " << end << ")";
    }
  }
}

struct Cut {
  std::vector<std::byte> row;
  int64_t inputs, phase;
};

// `spare` bytes behind the cut must stay as they are.
Cut CutOf(const WeightFormat& format, const Cut& from, int64_t begin, int64_t end) {
  Cut cut{{}, end - begin, PhaseAt(format, from.phase, begin)};
  const uint64_t bytes = LayoutOf(format, cut.inputs, cut.phase).row_bytes;
  cut.row.assign(bytes + 8, std::byte{0x5a});
  CutRow(format, from.row.data(), from.inputs, from.phase, begin, end, cut.row.data());
  for (uint64_t i = bytes; i < bytes + 8; ++i)
    EXPECT_EQ(cut.row[i], std::byte{0x5a}) << format.Name() << ": wrote behind the row";
  cut.row.resize(bytes);
  return cut;
}

// Every pair of block bounds, of a row of whole groups and of one that begins inside a group and
// ends inside a block.
TEST(WeightFormat, EveryCutBetweenBlocksKeepsTheBits) {
  std::mt19937_64 random(testing::TestSeed());
  for (const WeightFormat& format : testing::AllFormats()) {
    for (const int64_t inputs : {int64_t{512}, int64_t{32 * 13 + 16}}) {
      const int64_t groups = std::max<int64_t>(1, format.group_blocks);
      const int64_t phase = inputs == 512 ? 0 : groups - 1;
      const Cut whole{testing::RandomRow(format, inputs, phase, &random), inputs, phase};
      const std::vector<uint32_t> bits = Decoded(format, whole.row, inputs, phase, 0, inputs);
      for (int64_t begin = 0; begin <= inputs; begin += 32) {
        for (int64_t next = begin; next < inputs + 32; next += 32) {
          const int64_t end = std::min(next, inputs);
          const Cut cut = CutOf(format, whole, begin, end);
          ASSERT_EQ(Decoded(format, cut.row, cut.inputs, cut.phase, 0, cut.inputs),
                    std::vector<uint32_t>(bits.begin() + begin, bits.begin() + end))
              << format.Name() << " [" << begin << ", " << end << ") phase " << phase;
        }
      }
    }
  }
}

TEST(WeightFormat, CutsOfCutsKeepTheBits) {
  std::mt19937_64 random(testing::TestSeed());
  for (const WeightFormat& format : testing::AllFormats()) {
    const int64_t step = format.cut_weights();
    for (int trial = 0; trial < 20; ++trial) {
      const int64_t inputs = 2048;
      Cut cut{testing::RandomRow(format, inputs, 0, &random), inputs, 0};
      const std::vector<uint32_t> bits = Decoded(format, cut.row, inputs, 0, 0, inputs);
      int64_t at = 0;
      while (cut.inputs > 0) {
        const auto places = static_cast<uint64_t>(cut.inputs / step);
        const auto begin = static_cast<int64_t>(random() % (places / 2 + 1)) * step;
        const int64_t end = cut.inputs - static_cast<int64_t>(random() % (places / 4 + 1)) * step;
        if (begin >= end || (begin == 0 && end == cut.inputs && places < 4)) break;
        cut = CutOf(format, cut, begin, end);
        at += begin;
        ASSERT_EQ(Decoded(format, cut.row, cut.inputs, cut.phase, 0, cut.inputs),
                  std::vector<uint32_t>(bits.begin() + at, bits.begin() + at + cut.inputs))
            << format.Name() << " at " << at << ", " << cut.inputs << " columns";
      }
    }
  }
}

TEST(HostMatrix, HasRowsOfTheLayout) {
  const WeightFormat format = WeightFormat::Of(Encoding::kQ4_K);
  StatusOr<HostMatrix> matrix = HostMatrix::Allocate(format, 3, 5, 256, "test", 2);
  ASSERT_TRUE(matrix.ok());
  EXPECT_EQ(matrix->row_bytes(), 152u);
  EXPECT_EQ(matrix->data.bytes(), 15 * 152u + 64);
  EXPECT_EQ(matrix->row(2, 1), matrix->data.data() + 11 * 152);
}

TEST(HostMatrix, RefusesSizesThatOverflow) {
  const WeightFormat q8 = WeightFormat::Of(Encoding::kQ8_0);
  for (const auto& [count, outputs, inputs] :
       std::vector<std::array<int64_t, 3>>{{int64_t{1} << 32, int64_t{1} << 32, 1},
                                           {1, int64_t{1} << 32, int64_t{1} << 32},
                                           {1, 1, int64_t{1} << 62},
                                           {1, int64_t{1} << 40, int64_t{1} << 24},
                                           {-1, 1, 32},
                                           {1, -1, 32},
                                           {1, 1, -32}}) {
    const StatusOr<HostMatrix> matrix = HostMatrix::Allocate(q8, count, outputs, inputs, "w");
    ASSERT_FALSE(matrix.ok()) << count << " " << outputs << " " << inputs;
    EXPECT_THAT(MessageOf(matrix.status()), HasSubstr("w: "));
  }
}

TEST(HostMatrix, EmptySharesAreLegal) {
  for (const WeightFormat& format : testing::AllFormats()) {
    EXPECT_TRUE(HostMatrix::Allocate(format, 2, 0, 64, "none").ok());
    EXPECT_TRUE(HostMatrix::Allocate(format, 2, 64, 0, "none").ok());
  }
}

}  // namespace
}  // namespace lockstep
