// Sharded equals unsharded, bit for bit: what the ranks hold of a tensor, put side by side, is what
// one rank alone would hold, in every format and at uneven cuts.
#include "runtime/weights/slice_loader.h"

#include <atomic>
#include <cstring>
#include <random>

#include "gtest/gtest.h"
#include "tests/support/golden.h"
#include "tests/support/ranks.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using testing::RunRanks;
using testing::SourcePath;

// Bits, so that -0 and 0 differ.
std::vector<uint32_t> Decode(HostMatrix& matrix) {
  std::vector<float> values(static_cast<size_t>(matrix.outputs * matrix.inputs));
  for (int64_t row = 0; row < matrix.outputs && matrix.inputs > 0; ++row) {
    DecodeRow(matrix.format, matrix.row(0, row), matrix.inputs, matrix.phase, 0, matrix.inputs,
              values.data() + row * matrix.inputs);
  }
  std::vector<uint32_t> bits(values.size());
  if (!bits.empty()) std::memcpy(bits.data(), values.data(), bits.size() * sizeof(float));
  return bits;
}

std::vector<uint32_t> Whole(const TensorInfo& info, const std::string& name) {
  HostMatrix matrix =
      HostMatrix::Allocate(info.format, 1, info.shape[0], info.shape[1], "test").value();
  StoredRowReader reader({});
  const Status status = reader.Read(info, name, {0, info.shape[0]}, matrix.data.data());
  EXPECT_TRUE(status.ok()) << status;
  return Decode(matrix);
}

// The columns `range` of every row of [height, width].
std::vector<uint32_t> ColumnsOf(const std::vector<uint32_t>& whole, int64_t width, Range range) {
  std::vector<uint32_t> columns;
  for (size_t row = 0; row < whole.size(); row += static_cast<size_t>(width))
    columns.insert(columns.end(), whole.begin() + static_cast<int64_t>(row) + range.begin,
                   whole.begin() + static_cast<int64_t>(row) + range.end);
  return columns;
}

class SliceLoaderOf : public ::testing::TestWithParam<std::string> {};

// What one rank reads of one tensor, against the whole.
void CompareSlices(SliceLoader& loader, const std::string& name, const TensorInfo& info,
                   const std::vector<double>& shares) {
  const auto rank = static_cast<size_t>(loader.rank());
  const int64_t height = info.shape[0], width = info.shape[1];
  const std::vector<uint32_t> whole = Whole(info, name);
  const Range rows = CutByShares(height, shares)[rank];
  for (const WeightFormat& format : {info.format, WeightFormat(DType::kF32)}) {
    HostMatrix slice = HostMatrix::Allocate(format, 1, rows.size(), width, "test").value();
    ASSERT_TRUE(loader.ReadRows(name, height, rows, &slice, 0, 0).ok());
    EXPECT_EQ(Decode(slice), std::vector<uint32_t>(whole.begin() + rows.begin * width,
                                                   whole.begin() + rows.end * width))
        << name << " rows " << rows.begin << " to " << rows.end;
  }
  const int64_t unit = info.format.cut_weights();
  const std::vector<Range> own = CutByShares(width, shares, unit);
  const std::vector<Range> any = CutByShares(width, shares);
  ASSERT_TRUE(CutsFit(info.format, width, own));
  for (const auto& [columns, format] :
       {std::pair(own, info.format), std::pair(any, WeightFormat(DType::kF32))}) {
    const Range mine = columns[rank];
    const int64_t phase = mine.empty() ? 0 : PhaseAt(format, 0, mine.begin);
    HostMatrix slice = HostMatrix::Allocate(format, 1, height, mine.size(), "test", phase).value();
    const Status status = loader.ReadColumns(name, width, columns, &slice, 0);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(Decode(slice), ColumnsOf(whole, width, mine))
        << name << " columns " << mine.begin << " to " << mine.end;
  }
}

TEST_P(SliceLoaderOf, ShardedEqualsUnsharded) {
  const auto checkpoint = Checkpoint::Open(SourcePath("tests/goldens/models/" + GetParam()));
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  for (const std::vector<double>& shares :
       std::vector<std::vector<double>>{{1}, {3, 2}, {1, 0, 2}, {0.2, 1, 3, 0.1, 1}}) {
    RunRanks(static_cast<int>(shares.size()), "tcp", [&](Membership&, Group& group) {
      SliceLoader loader(**checkpoint, group, shares, {});
      int compared = 0;
      for (const auto& [name, info] : (*checkpoint)->tensors()) {
        // Of each format and each place a few: one layer, two experts.
        const bool wanted = name.find("layers.1.") != std::string::npos &&
                            name.find("experts.2") == std::string::npos;
        if (info.shape.size() != 2 || !wanted) continue;
        CompareSlices(loader, name, info, shares);
        ++compared;
      }
      EXPECT_GE(compared, 5);
    });
  }
}

// The files of a model, which count what is read past the page cache and what is not.
class CountingFiles final : public FileSource {
 public:
  explicit CountingFiles(std::string directory) : directory_(std::move(directory)) {}

  StatusOr<std::unique_ptr<RandomAccessFile>> Open(const std::string& name) const override {
    LOCKSTEP_ASSIGN_OR_RETURN(auto file, RandomAccessFile::Open(directory_ + "/" + name));
    return std::make_unique<File>(std::move(file), *this);
  }
  bool Exists(const std::string& name) const override {
    return FileExists(directory_ + "/" + name);
  }
  std::vector<std::string> List() const override { return NamesIn(directory_).value(); }

  mutable std::atomic<int> ahead{0}, at_once{0};

 private:
  class File final : public RandomAccessFile {
   public:
    File(std::unique_ptr<RandomAccessFile> file, const CountingFiles& files)
        : RandomAccessFile(file->path(), file->size_bytes()),
          file_(std::move(file)),
          files_(files) {}
    Status Read(uint64_t offset, std::span<std::byte> out) const override {
      ++files_.at_once;
      return file_->Read(offset, out);
    }
    Status ReadDirect(uint64_t offset, std::span<std::byte> out) const override {
      ++files_.ahead;
      return file_->ReadDirect(offset, out);
    }

   private:
    const std::unique_ptr<RandomAccessFile> file_;
    const CountingFiles& files_;
  };

  const std::string directory_;
};

// The plan has every byte that is then asked for.
TEST_P(SliceLoaderOf, WhatIsReadAheadIsAllThatIsRead) {
  const std::string name = GetParam();
  const bool file = name.ends_with(".gguf");
  const CountingFiles files(SourcePath("tests/goldens/models" + (file ? "" : "/" + name)));
  const MountedFiles mounted("counted:", files);
  const auto checkpoint = Checkpoint::Open(file ? "counted:/" + name : "counted:");
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const std::vector<double> shares = {3, 1, 2};
  RunRanks(3, "tcp", [&](Membership&, Group& group) {
    const auto rank = static_cast<size_t>(group.rank());
    std::vector<SliceRequest> requests;
    for (const auto& [tensor, info] : (*checkpoint)->tensors()) {
      if (info.shape.size() != 2) continue;
      requests.push_back({tensor, {SliceKind::kRows, CutByShares(info.shape[0], shares)[rank]}});
      const auto columns = CutByShares(info.shape[1], shares, info.format.cut_weights());
      requests.push_back({tensor, {SliceKind::kColumns, columns[rank]}});
    }
    SliceLoader loader(**checkpoint, group, shares, {});
    ASSERT_TRUE(Barrier(group).ok());
    files.at_once = 0;
    ASSERT_TRUE(Barrier(group).ok());
    ASSERT_TRUE(loader.ReadAheadFor(requests).ok());
    for (const SliceRequest& request : requests) {
      const TensorInfo& info = *(*checkpoint)->Find(request.name);
      const Range range = request.slice.range;
      if (request.slice.kind == SliceKind::kRows) {
        HostMatrix slice =
            HostMatrix::Allocate(info.format, 1, range.size(), info.shape[1], "test").value();
        ASSERT_TRUE(loader.ReadRows(request.name, info.shape[0], range, &slice, 0, 0).ok());
      } else {
        const auto columns = CutByShares(info.shape[1], shares, info.format.cut_weights());
        HostMatrix slice = HostMatrix::Allocate(info.format, 1, info.shape[0], range.size(), "test",
                                                PhaseAt(info.format, 0, range.begin))
                               .value();
        ASSERT_TRUE(loader.ReadColumns(request.name, info.shape[1], columns, &slice, 0).ok());
      }
    }
    ASSERT_TRUE(Barrier(group).ok());
    EXPECT_EQ(files.at_once, 0);
    EXPECT_GT(files.ahead, 0);
  });
}

INSTANTIATE_TEST_SUITE_P(Files, SliceLoaderOf,
                         ::testing::Values("tiny-a", "tiny-a-F16.gguf", "tiny-a-Q4_0.gguf",
                                           "tiny-a-Q8_0.gguf", "tiny-a-fp8", "tiny-a-mlx8",
                                           "tiny-b-Q8_0.gguf", "tiny-k-Q4_K_M.gguf", "tiny-k-mlx4"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) ? c : '_';
                           return name;
                         });

TEST(CutsFit, SaysWhetherBlocksStayWhole) {
  const WeightFormat q8 = WeightFormat::Of(Encoding::kQ8_0);
  EXPECT_TRUE(CutsFit(q8, 80, {{0, 32}, {32, 32}, {32, 80}}));
  EXPECT_FALSE(CutsFit(q8, 80, {{0, 16}, {16, 80}}));
  EXPECT_TRUE(CutsFit(DType::kBF16, 80, {{0, 17}, {17, 80}}));
  EXPECT_TRUE(CutsFit(WeightFormat::Fp8(kWholeRow), 80, {{0, 17}, {17, 80}}));
}

}  // namespace
}  // namespace lockstep
