// What a checkpoint may not do: every lie in a header ends in a sentence that names file and
// tensor.
#include "runtime/weights/safetensors.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_format.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/golden.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Pair;
using testing::TemporaryDirectory;

std::string File(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &size, 8);
  return bytes + header + data;
}

// The error of opening a directory with one file of this content.
std::string ErrorOf(const std::string& contents) {
  const TemporaryDirectory directory;
  directory.Write("model.safetensors", contents);
  const auto opened = Checkpoint::Open(directory.path());
  EXPECT_FALSE(opened.ok());
  if (opened.ok()) return "";
  EXPECT_EQ(ExitCode(opened.status()), 3);
  return MessageOf(opened.status());
}

constexpr char kGood[] = R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})";

TEST(Checkpoint, ReadsNamesShapesAndPlaces) {
  const TemporaryDirectory directory;
  directory.Write("model.safetensors", File(kGood, std::string(16, 'x')));
  const auto opened = Checkpoint::Open(directory.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  const TensorInfo* tensor = (*opened)->Find("a");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->data.type, "F32");
  EXPECT_EQ(tensor->ShapeText(), "[2, 2]");
  EXPECT_EQ(tensor->data.offset, 8 + std::strlen(kGood));
  EXPECT_EQ((*opened)->Find("b"), nullptr);
}

TEST(Checkpoint, RefusesFilesThatAreCutOrLie) {
  EXPECT_THAT(ErrorOf("abc"), HasSubstr("too short for a header"));
  EXPECT_THAT(
      ErrorOf(File(kGood, std::string(12, 'x'))),
      AllOf(HasSubstr("model.safetensors"), HasSubstr("tensor a"), HasSubstr("outside the file")));
  std::string huge = File(kGood, std::string(16, 'x'));
  std::memset(huge.data(), 0xff, 8);
  EXPECT_THAT(ErrorOf(huge), HasSubstr("claims a header of"));
  EXPECT_THAT(ErrorOf(File("{\"a\":", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorOf(File("[1]", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(ErrorOf(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,16]}})",
                           std::string(16, 'x'))),
              AllOf(HasSubstr("needs 8 bytes"), HasSubstr("give 16")));
  EXPECT_THAT(ErrorOf(File(R"({"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,16]}})",
                           std::string(16, 'x'))),
              HasSubstr("not a whole number >= 0"));
  EXPECT_THAT(
      ErrorOf(
          File(R"({"a":{"dtype":"F32","shape":[4294967296,4294967296,8],"data_offsets":[0,16]}})",
               std::string(16, 'x'))),
      HasSubstr("overflows"));
  EXPECT_THAT(ErrorOf(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}})",
                           std::string(16, 'x'))),
              HasSubstr("outside the file"));
  EXPECT_THAT(ErrorOf(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                           R"("b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}})",
                           std::string(16, 'x'))),
              HasSubstr("tensors a and b overlap"));
  EXPECT_THAT(ErrorOf(File(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},)"
                           R"("a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}})",
                           std::string(16, 'x'))),
              HasSubstr("names a tensor twice, a;"));
  EXPECT_THAT(ErrorOf(File(R"({"a":{"shape":[2]}})", "")), HasSubstr("needs dtype, shape"));
  EXPECT_THAT(ErrorOf(File(R"({"a":5})", "")), HasSubstr("needs dtype, shape"));
}

// Of a header that is not followed by data.
std::string HeaderError(const std::string& header) {
  const auto parsed = ParseSafetensorsHeader(header, 8 + header.size(), "m.safetensors");
  return parsed.ok() ? "" : MessageOf(parsed.status());
}

std::string Repeated(const std::string& text, int times) {
  std::string all;
  all.reserve(text.size() * times);
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

// GLM-4.7 in one file has 44,000 arrays; time must not grow with their square. The test has no
// clock: it takes a minute and more if it does.
TEST(SafetensorsHeader, FiftyThousandTensorsAreFew) {
  constexpr int kTensors = 50'000;
  std::string header = R"({"__metadata__":{"format":"pt"})";
  for (int i = 0; i < kTensors; ++i) {
    header += absl::StrFormat(R"(,"model.layers.%d.mlp.experts.%d.up_proj.weight":)"
                              R"({"dtype":"BF16","shape":[2,3],"data_offsets":[%d,%d]})",
                              i / 160, i % 160, 12 * i, 12 * (i + 1));
  }
  header += "}";
  const auto parsed =
      ParseSafetensorsHeader(header, 8 + header.size() + 12 * kTensors, "m.safetensors");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->tensors.size(), kTensors);
  const StoredArray& array = parsed->tensors.at("model.layers.1.mlp.experts.2.up_proj.weight");
  EXPECT_EQ(array.offset, 8 + header.size() + 12 * 162);
  EXPECT_EQ(array.bytes, 12);
  EXPECT_THAT(array.shape, ElementsAre(2, 3));
}

// The texts end in the middle: a reader that took all of it first would say that it is no JSON.
TEST(SafetensorsHeader, LiesAreRefusedWhereTheyStand) {
  const std::string many = Repeated("1,", 1'000'000);
  EXPECT_THAT(HeaderError(R"({"a":{"dtype":"U8","shape":[)" + many),
              AllOf(HasSubstr("m.safetensors: tensor a"), HasSubstr("more than 8 dimensions")));
  EXPECT_THAT(HeaderError(R"({"a":{"data_offsets":[)" + many), HasSubstr("two data_offsets"));
  EXPECT_THAT(HeaderError(R"({"a":{"shape":[[)"), HasSubstr("a dimension is not a whole number"));
  EXPECT_THAT(HeaderError(R"({"a":{"dtype":{)"), HasSubstr("needs dtype, shape"));
  EXPECT_THAT(HeaderError(R"({"a":{"shape":[1],"shape")"), HasSubstr("a: names shape twice"));
  EXPECT_THAT(HeaderError(R"({"__metadata__":)" + Repeated("[", 100'000)),
              HasSubstr("nests deeper than 8 levels"));
  EXPECT_THAT(HeaderError(R"({"a":{"other":)" + Repeated(R"({"b":)", 100'000)),
              HasSubstr("nests deeper than 8 levels"));
  std::string names = "{";
  for (int i = 0; i <= 500'000; ++i) {
    names += absl::StrFormat(R"("%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)", i);
  }
  EXPECT_THAT(HeaderError(names), HasSubstr("more than 500000 tensors"));
}

TEST(SafetensorsHeader, WhatTheFormatDoesNotNameIsPassedOver) {
  const std::string header =
      R"({"__metadata__":{"dtype":1,"shape":[[2]],"data_offsets":{}},)"
      R"("a":{"note":{"shape":[-1]},"dtype":"U8","x":[1,[2]],"shape":[0],"data_offsets":[0,0]}})";
  const auto parsed = ParseSafetensorsHeader(header, 8 + header.size(), "m.safetensors");
  ASSERT_TRUE(parsed.ok()) << parsed.status();
  ASSERT_EQ(parsed->tensors.size(), 1);
  EXPECT_THAT(parsed->tensors.at("a").shape, ElementsAre(0));
}

std::string IndexError(const std::string& index) {
  const auto parsed = ParseSafetensorsIndex(index, "i.json");
  return parsed.ok() ? "" : MessageOf(parsed.status());
}

TEST(SafetensorsIndex, TheMapIsKeptAndTheRestIsPassedOver) {
  const auto files = ParseSafetensorsIndex(
      R"({"metadata":{"weight_map":{"x":1},"total_size":[2,{"y":"../z"}]},)"
      R"("weight_map":{"b":"n..safetensors","a":"m.safetensors"},"other":["/"]})",
      "i.json");
  ASSERT_TRUE(files.ok()) << files.status();
  EXPECT_THAT(*files, ElementsAre(Pair("a", "m.safetensors"), Pair("b", "n..safetensors")));
}

// The texts end in the middle: a reader that took all of it first would say that it is no JSON.
TEST(SafetensorsIndex, LiesAreRefusedWhereTheyStand) {
  for (const std::string name : {"../b", "a/b", "/b", R"(a\\b)", R"(..\\b)", "..", ".b", ""}) {
    EXPECT_THAT(IndexError(R"({"weight_map":{"a":")" + name + "\","),
                AllOf(HasSubstr("i.json: weight_map.a is not a file's name: '"),
                      HasSubstr("no file of this directory"), HasSubstr("fetch it again")))
        << name;
  }
  for (const std::string value : {"7", "null", "[", "{"}) {
    EXPECT_THAT(IndexError(R"({"weight_map":{"a":)" + value + ","),
                HasSubstr("weight_map.a is not a file's name;"))
        << value;
  }
  EXPECT_THAT(IndexError(R"({"weight_map":{"a":"b","a":)"), HasSubstr("a tensor twice, a;"));
  EXPECT_THAT(IndexError(R"({"weight_map":{},"weight_map":)"), HasSubstr("weight_map twice"));
  for (const char* none : {"", "[", "7", "{}", R"({"weight_map":[)", R"({"weight_map":"a",)",
                           R"({"weight_map":{"a":"b")"}) {
    EXPECT_THAT(IndexError(none), HasSubstr("i.json: no JSON object with a weight_map")) << none;
  }
  EXPECT_THAT(IndexError(R"({"metadata":)" + Repeated("[", 100'000)),
              HasSubstr("nests deeper than 8 levels"));
  std::string names = R"({"weight_map":{)";
  for (int i = 0; i <= 500'000; ++i) names += absl::StrFormat(R"("%d":"m",)", i);
  EXPECT_THAT(IndexError(names), HasSubstr("more than 500000 tensors"));
}

TEST(Checkpoint, NamesTheShardThatIsMissing) {
  const TemporaryDirectory directory;
  directory.Write("model-00001-of-00002.safetensors", File(kGood, std::string(16, 'x')));
  directory.Write("model.safetensors.index.json",
                  R"({"weight_map":{"a":"model-00001-of-00002.safetensors",)"
                  R"("b":"model-00002-of-00002.safetensors"}})");
  const auto opened = Checkpoint::Open(directory.path());
  ASSERT_FALSE(opened.ok());
  EXPECT_THAT(MessageOf(opened.status()),
              AllOf(HasSubstr("model-00002-of-00002.safetensors"), HasSubstr("missing")));
}

TEST(Checkpoint, NamesTheTensorThatTheIndexPromisesInVain) {
  const TemporaryDirectory directory;
  directory.Write("model.safetensors", File(kGood, std::string(16, 'x')));
  directory.Write("model.safetensors.index.json", R"({"weight_map":{"lost":"model.safetensors"}})");
  const auto opened = Checkpoint::Open(directory.path());
  ASSERT_FALSE(opened.ok());
  EXPECT_THAT(MessageOf(opened.status()), HasSubstr("tensor lost is missing"));
}

TEST(Checkpoint, RefusesAnIndexThatPointsOutsideTheDirectory) {
  const TemporaryDirectory directory;
  directory.Write("model.safetensors", File(kGood, std::string(16, 'x')));
  for (const char* index : {R"({"weight_map":{"a":"../../etc/passwd"}})",
                            R"({"weight_map":{"a":"..\\etc\\passwd"}})"}) {
    directory.Write("model.safetensors.index.json", index);
    EXPECT_THAT(MessageOf(Checkpoint::Open(directory.path()).status()),
                HasSubstr("no file of this directory"));
  }
}

TEST(Checkpoint, RefusesAnIndexOfMoreThan64MiB) {
  const TemporaryDirectory directory;
  directory.Write("model.safetensors", File(kGood, std::string(16, 'x')));
  directory.Write("model.safetensors.index.json", "{}");
  std::filesystem::resize_file(directory.File("model.safetensors.index.json"), (64 << 20) + 1);
  EXPECT_THAT(MessageOf(Checkpoint::Open(directory.path()).status()),
              AllOf(HasSubstr("index.json"), HasSubstr("more than the 67108864")));
}

TEST(Checkpoint, FindsFilesBesideTheIndex) {
  const TemporaryDirectory directory;
  directory.Write("model.safetensors", File(kGood, std::string(16, 'x')));
  directory.Write(
      "mtp.safetensors",
      File(R"({"m":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}})", std::string(4, 'x')));
  directory.Write("model.safetensors.index.json", R"({"weight_map":{"a":"model.safetensors"}})");
  const auto opened = Checkpoint::Open(directory.path());
  ASSERT_TRUE(opened.ok()) << opened.status();
  EXPECT_NE((*opened)->Find("m"), nullptr);
}

TEST(Checkpoint, RefusesATensorThatTwoFilesHold) {
  const TemporaryDirectory directory;
  directory.Write("a.safetensors", File(kGood, std::string(16, 'x')));
  directory.Write("b.safetensors", File(kGood, std::string(16, 'x')));
  EXPECT_THAT(MessageOf(Checkpoint::Open(directory.path()).status()), HasSubstr("is also in"));
}

TEST(Checkpoint, SaysThatADirectoryIsNone) {
  EXPECT_THAT(MessageOf(Checkpoint::Open("/nowhere/at/all").status()),
              HasSubstr("no such directory"));
  const TemporaryDirectory directory;
  EXPECT_THAT(MessageOf(Checkpoint::Open(directory.path()).status()),
              HasSubstr("no *.safetensors file"));
}

uint64_t DigestOf(const TemporaryDirectory& directory) {
  return Checkpoint::Open(directory.path()).value()->Digest().value();
}

TEST(Checkpoint, DigestChangesWithTheValuesOfAnyTensor) {
  const TemporaryDirectory one, two, same;
  one.Write("m.safetensors", File(kGood, std::string(16, 'x')));
  two.Write("m.safetensors", File(kGood, std::string(15, 'x') + "y"));
  same.Write("m.safetensors", File(kGood, std::string(16, 'x')));
  EXPECT_NE(DigestOf(one), DigestOf(two));
  EXPECT_EQ(DigestOf(one), DigestOf(same));
}

TEST(Checkpoint, DigestChangesWithShapesAndTypes) {
  const TemporaryDirectory one, two;
  one.Write("m.safetensors", File(R"({"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}})",
                                  std::string(16, 'x')));
  two.Write("m.safetensors", File(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})",
                                  std::string(14, 'x') + "yy"));
  EXPECT_NE(DigestOf(one), DigestOf(two));
}

}  // namespace
}  // namespace lockstep
