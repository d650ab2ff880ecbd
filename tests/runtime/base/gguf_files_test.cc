#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/base/gguf.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/golden.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using testing::CopyGguf;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::RawBytes;
using testing::SourcePath;
using testing::TemporaryDirectory;

std::string GoldenPath(const std::string& name) {
  return SourcePath("tests/goldens/models/" + name + ".gguf");
}

std::string ErrorOf(const std::string& path) {
  const auto gguf = OpenGgufFiles(path);
  EXPECT_FALSE(gguf.ok()) << path;
  if (gguf.ok()) return "";
  EXPECT_EQ(KindOf(gguf.status()), ErrorKind::kModel) << gguf.status();
  return MessageOf(gguf.status());
}

std::string PartName(size_t part, size_t parts) {
  return absl::StrFormat("m-%05d-of-%05d.gguf", part, parts);
}

class SplitTest : public ::testing::Test {
 protected:
  void SetUp() override { parts_ = SplitGguf(CopyGguf(GoldenPath("tiny-a-Q8_0")), 3); }
  void WriteParts() const {
    for (size_t i = 0; i < 3; ++i) directory_.Write(PartName(i + 1, 3), parts_[i].Build());
  }
  std::string Part(size_t part) const { return directory_.File(PartName(part, 3)); }

  TemporaryDirectory directory_;
  std::vector<GgufBuilder> parts_;
};

TEST(GgufFilesTest, GoldensFillTheirFiles) {
  for (const auto& [name, tensors] :
       {std::pair("tiny-a-F16", 74), std::pair("tiny-a-Q8_0", 74), std::pair("tiny-a-Q4_0", 74),
        std::pair("tiny-b-Q8_0", 113), std::pair("tiny-k-Q4_K_M", 36),
        std::pair("tiny-flash-F16", 70)}) {
    const auto gguf = OpenGgufFiles(GoldenPath(name));
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    EXPECT_EQ(gguf->tensors.size(), static_cast<size_t>(tensors));
    uint64_t end = 0;
    for (const auto& [tensor, place] : gguf->tensors) {
      end = std::max(end, place.offset + place.bytes);
    }
    const uint64_t size = gguf->files[0]->size_bytes();
    EXPECT_TRUE(end <= size && end + 32 > size) << name;
  }
}

TEST(GgufFilesTest, HeadersOfSeveralMegabytesAreReadWhole) {
  GgufBuilder builder;
  std::vector<std::string> tokens;
  for (int i = 0; i < 200'000; ++i) tokens.push_back(absl::StrFormat("token number %d", i));
  builder.Set("tokenizer.ggml.tokens", tokens);
  builder.AddTensor("w", {8}, 0, std::string(32, 'w'));
  TemporaryDirectory directory;
  // Also where the header ends just behind, on and before the end of a read.
  directory.Write("long.gguf", builder.Build());
  auto gguf = OpenGgufFiles(directory.File("long.gguf"));
  ASSERT_TRUE(gguf.ok()) << gguf.status();
  EXPECT_EQ(*gguf->Texts("tokenizer.ggml.tokens"), tokens);
  EXPECT_EQ(gguf->tensors.at("w").offset + 32, gguf->files[0]->size_bytes());
  for (const int more : {-1, 0, 1}) {
    GgufBuilder exact;
    exact.AddTensor("w", {8}, 0, std::string(32, 'w'));
    exact.SetText("pad", "");
    exact.SetText("pad", std::string((1 << 20) - exact.Header().size() + more, 'x'));
    directory.Write("exact.gguf", exact.Build() + std::string(100, '\0'));
    gguf = OpenGgufFiles(directory.File("exact.gguf"));
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    EXPECT_EQ(gguf->tensors.size(), 1u);
  }
}

TEST_F(SplitTest, AnyPartOrTheDirectoryOpensTheWhole) {
  WriteParts();
  directory_.Write("mmproj-model.gguf", "not looked at");
  const auto whole = OpenGgufFiles(GoldenPath("tiny-a-Q8_0"));
  ASSERT_TRUE(whole.ok());
  for (const std::string& path : {Part(1), Part(2), Part(3), directory_.path()}) {
    const auto gguf = OpenGgufFiles(path);
    ASSERT_TRUE(gguf.ok()) << gguf.status();
    EXPECT_EQ(*gguf->Text("general.architecture"), "glm4moe");
    ASSERT_EQ(gguf->tensors.size(), whole->tensors.size());
    EXPECT_EQ(gguf->files.size(), 3u);
    for (const auto& [name, tensor] : whole->tensors) {
      const GgufTensor& here = gguf->tensors.at(name);
      std::string expected(tensor.bytes, '\0'), found(here.bytes, '\0');
      const auto& file = *gguf->files[static_cast<size_t>(here.part)];
      ASSERT_TRUE(
          whole->files[0]->Read(tensor.offset, std::as_writable_bytes(std::span(expected))).ok());
      ASSERT_TRUE(file.Read(here.offset, std::as_writable_bytes(std::span(found))).ok());
      EXPECT_EQ(found, expected) << name;
    }
  }
}

TEST_F(SplitTest, MissingPartIsNamed) {
  WriteParts();
  std::filesystem::remove(Part(2));
  EXPECT_THAT(ErrorOf(Part(1)), HasSubstr(PartName(2, 3) + ": missing; it is part 2 of 3"));
}

TEST_F(SplitTest, MixedUpPartsAreRefused) {
  std::swap(parts_[1], parts_[2]);
  WriteParts();
  EXPECT_THAT(ErrorOf(Part(1)), HasSubstr("says that it is part 3 of 3"));
}

TEST_F(SplitTest, PartWithoutSplitKeysIsRefused) {
  parts_[1].Erase("split.no");
  WriteParts();
  EXPECT_THAT(ErrorOf(Part(1)), HasSubstr("says that it is part ? of 3"));
}

TEST_F(SplitTest, PartOfAnotherModelIsRefused) {
  parts_[2].SetText("general.name", "tiny-b");
  WriteParts();
  EXPECT_THAT(ErrorOf(Part(1)), HasSubstr("differs from"));
}

TEST_F(SplitTest, TensorInTwoPartsIsRefused) {
  parts_[2].tensors.push_back(parts_[0].tensors[0]);
  WriteParts();
  EXPECT_THAT(ErrorOf(Part(1)), HasSubstr("is also in"));
}

TEST_F(SplitTest, NumberOfTensorsIsChecked) {
  parts_[1].tensors.pop_back();
  WriteParts();
  EXPECT_THAT(ErrorOf(Part(3)), HasSubstr("split.tensors.count says 74 tensors, but the 3 parts"));
}

TEST_F(SplitTest, CutPartIsNamed) {
  WriteParts();
  const std::string bytes = parts_[1].Build();
  directory_.Write(PartName(2, 3), bytes.substr(0, bytes.size() - 40));
  EXPECT_THAT(ErrorOf(Part(1)), HasSubstr(PartName(2, 3)));
  EXPECT_THAT(ErrorOf(Part(1)), HasSubstr("ends beyond the file"));
}

TEST_F(SplitTest, RenamedPartSaysWhatItIs) {
  directory_.Write("renamed.gguf", parts_[0].Build());
  EXPECT_THAT(ErrorOf(directory_.File("renamed.gguf")), HasSubstr("is one of 3 parts"));
}

TEST_F(SplitTest, ImpossiblePartNumbersAreRefused) {
  directory_.Write("m-00004-of-00003.gguf", parts_[0].Build());
  EXPECT_THAT(ErrorOf(directory_.File("m-00004-of-00003.gguf")), HasSubstr("part 4 of 3"));
  directory_.Write("m-00000-of-00000.gguf", parts_[0].Build());
  EXPECT_THAT(ErrorOf(directory_.File("m-00000-of-00000.gguf")), HasSubstr("part 0 of 0"));
}

TEST(GgufFilesTest, DirectoriesHoldExactlyOneModel) {
  TemporaryDirectory directory;
  EXPECT_THAT(ErrorOf(directory.path()), HasSubstr("holds no *.gguf file"));
  EXPECT_FALSE(IsGgufModel(directory.path()));
  directory.Write("one.gguf", GgufBuilder().Build());
  EXPECT_TRUE(OpenGgufFiles(directory.path()).ok());
  EXPECT_TRUE(IsGgufModel(directory.path()));
  directory.Write("two.gguf", GgufBuilder().Build());
  EXPECT_THAT(ErrorOf(directory.path()), HasSubstr("one.gguf, two.gguf"));
  directory.Write("model.safetensors", "");
  EXPECT_FALSE(IsGgufModel(directory.path()));
  EXPECT_TRUE(IsGgufModel("anything.gguf"));
  EXPECT_THAT(ErrorOf("/nonexistent/x.gguf"), HasSubstr("no such file"));
}

}  // namespace
}  // namespace lockstep
