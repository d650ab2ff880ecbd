// Where a file gives strided ranges, each rank reads its own columns and no other.
#include <filesystem>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "runtime/base/file.h"
#include "runtime/weights/slice_loader.h"
#include "runtime/weights/transcode.h"
#include "tests/support/golden.h"
#include "tests/support/sharding.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using testing::ShardModel;
using testing::SourcePath;
using testing::TemporaryDirectory;

// How often each byte of a file was read.
struct Counts {
  std::mutex mutex;
  std::map<std::string, std::vector<int>> of_file;

  void Add(const std::string& path, uint64_t offset, uint64_t bytes) {
    const std::lock_guard lock(mutex);
    std::vector<int>& counts = of_file[path];
    if (counts.size() < offset + bytes) counts.resize(offset + bytes);
    for (uint64_t i = 0; i < bytes; ++i) ++counts[offset + i];
  }
  uint64_t Of(const StoredArray& array) {
    const std::vector<int>& counts = of_file[array.file->path()];
    uint64_t sum = 0;
    for (uint64_t i = array.offset;
         i < std::min<uint64_t>(counts.size(), array.offset + array.bytes); ++i) {
      sum += static_cast<uint64_t>(counts[i]);
    }
    return sum;
  }
};

class CountedFile final : public RandomAccessFile {
 public:
  CountedFile(std::unique_ptr<RandomAccessFile> file, const std::string& path, Counts& counts)
      : RandomAccessFile(path, file->size_bytes()), file_(std::move(file)), counts_(counts) {}

  Status Read(uint64_t offset, std::span<std::byte> out) const override {
    counts_.Add(path(), offset, out.size());
    return file_->Read(offset, out);
  }
  bool reads_strided() const override { return true; }

 private:
  const std::unique_ptr<RandomAccessFile> file_;
  Counts& counts_;
};

class CountedFiles final : public FileSource {
 public:
  CountedFiles(std::string directory, std::string mounted)
      : directory_(std::move(directory)), mounted_(std::move(mounted)) {}

  StatusOr<std::unique_ptr<RandomAccessFile>> Open(const std::string& name) const override {
    LOCKSTEP_ASSIGN_OR_RETURN(auto file, RandomAccessFile::Open(directory_ + "/" + name));
    return std::make_unique<CountedFile>(std::move(file), mounted_ + "/" + name, counts);
  }
  bool Exists(const std::string& name) const override {
    return std::filesystem::exists(directory_ + "/" + name);
  }
  std::vector<std::string> List() const override { return NamesIn(directory_).value(); }

  mutable Counts counts;

 private:
  const std::string directory_, mounted_;
};

class OwnSlices : public ::testing::TestWithParam<const char*> {};

TEST_P(OwnSlices, AreAllThatIsReadOfColumns) {
  const std::string name = GetParam();
  const bool gguf = name.ends_with(".gguf");
  const std::string place = "counted://models";
  const std::string model = gguf ? place + "/" + name : place;
  const std::vector<double> shares = {3, 1, 2};
  const TemporaryDirectory out;
  const CountedFiles files(SourcePath("tests/goldens/models" + (gguf ? "" : "/" + name)), place);
  const MountedFiles mounted(place, files);
  const auto source = Checkpoint::Open(model);
  ASSERT_TRUE(source.ok()) << source.status();
  // The header of a GGUF file is read in large pieces, which reach into its data.
  std::map<std::string, uint64_t> at_opening;
  for (const auto& [tensor, info] : (*source)->tensors())
    at_opening[tensor] = files.counts.Of(info.data);
  for (int rank = 0; rank < 3; ++rank) {
    ShardOptions options;
    options.only_rank = rank;
    const auto result = ShardModel(model, out.path(), shares, "", options);
    ASSERT_TRUE(result.ok()) << result.status();
  }
  const ModelConfig config = ConfigOf(**source).value();
  std::vector<std::string> left_out;
  const auto slices = PlanShards(config, **source, shares, &left_out).value();
  std::map<std::string, std::vector<Range>> columns;  // of all ranks
  for (const auto& of_rank : slices) {
    for (const SliceRequest& request : of_rank) {
      if (request.slice.kind == SliceKind::kColumns)
        columns[request.name].push_back(request.slice.range);
    }
  }
  int checked = 0;
  for (const auto& [tensor, cuts] : columns) {
    const TensorInfo& info = *(*source)->Find(tensor);
    const int64_t width = info.shape[1];
    if (!CutsFit(info.format, width, cuts)) continue;  // converted: whole rows
    int64_t wanted = 0;
    for (const Range& cut : cuts) wanted += WholeColumnUnits(info.format, cut, width).size();
    const auto bytes =
        info.data.bytes * static_cast<uint64_t>(wanted) / static_cast<uint64_t>(width);
    // Opened four times; the checkpoint's digest takes a sample of each tensor, three times here.
    const uint64_t read = files.counts.Of(info.data) - 4 * at_opening[tensor];
    EXPECT_LE(read, bytes + 3 * 1024) << tensor;
    EXPECT_GE(read, bytes) << tensor;
    ++checked;
  }
  EXPECT_GT(checked, 0);
}

INSTANTIATE_TEST_SUITE_P(Models, OwnSlices,
                         ::testing::Values("tiny-k", "tiny-a-fp8", "tiny-k-mlx4", "tiny-flash",
                                           "tiny-k-Q4_K_M.gguf", "tiny-b-Q8_0.gguf"),
                         [](const auto& info) {
                           std::string name = info.param;
                           for (char& c : name) c = std::isalnum(c) != 0 ? c : '_';
                           return name;
                         });

}  // namespace
}  // namespace lockstep
