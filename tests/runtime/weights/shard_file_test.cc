// The container of rank files: what it says comes back, and nothing that is wrong is believed.
#include "runtime/weights/shard_file.h"

#include <array>
#include <random>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/weights/bounded_json.h"
#include "tests/runtime/weights/shard_fuzz_body.h"
#include "tests/support/seed.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

ShardHeader Example() {
  ShardHeader header;
  header.source = 0x0123456789abcdef;
  header.settings = 42;
  header.rank = 1;
  header.shares = {3, 1.5};
  header.config = "{\"a\": \"\\u00e9\"}";
  header.tensors = {
      {"rows", {8, 320}, {SliceKind::kRows, {3, 8}}, WeightFormat::Of(Encoding::kQ4_K)},
      {"columns", {8, 320}, {SliceKind::kColumns, {96, 320}}, WeightFormat::Of(Encoding::kQ6_K)},
      {"mlx", {4, 64}, {SliceKind::kRows, {0, 4}}, WeightFormat::Mlx(5, 32, DType::kBF16)},
      {"none", {8, 32}, {SliceKind::kRows, {}}, WeightFormat::Fp8(4)},
      {"norm", {7}, {SliceKind::kElements, {0, 7}}, DType::kBF16}};
  return header;
}

struct Made {
  std::string text;  // of the header
  uint64_t file_bytes = 0;
};

Made Make(ShardHeader header) {
  const uint64_t size = PlaceShardTensors(&header);
  for (ShardTensor& tensor : header.tensors) tensor.checksum = tensor.offset;
  return {ShardBeginning(header).substr(kShardPreambleBytes), size};
}

void ExpectRefused(const std::string& text, uint64_t file_bytes, const std::string& needle) {
  const StatusOr<ShardHeader> header = ParseShardHeader(text, file_bytes, "r.lockstep");
  ASSERT_FALSE(header.ok()) << text.substr(0, 300);
  EXPECT_EQ(KindOf(header.status()), ErrorKind::kModel);
  EXPECT_THAT(MessageOf(header.status()), HasSubstr(needle));
  EXPECT_THAT(MessageOf(header.status()), HasSubstr("r.lockstep"));
}

TEST(ShardFile, WhatIsWrittenComesBack) {
  const Made made = Make(Example());
  const StatusOr<ShardHeader> header = ParseShardHeader(made.text, made.file_bytes, "r.lockstep");
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->source, 0x0123456789abcdefu);
  EXPECT_EQ(header->settings, 42u);
  EXPECT_EQ(header->rank, 1);
  EXPECT_EQ(header->shares, (std::vector<double>{3, 1.5}));
  EXPECT_EQ(header->config, Example().config);
  ASSERT_EQ(header->tensors.size(), Example().tensors.size());
  for (size_t i = 0; i < header->tensors.size(); ++i) {
    const ShardTensor& got = header->tensors[i];
    const ShardTensor want = Example().tensors[i];
    EXPECT_EQ(got.name, want.name);
    EXPECT_EQ(got.shape, want.shape);
    EXPECT_TRUE(got.slice == want.slice);
    EXPECT_TRUE(got.format == want.format) << got.format.Name();
    EXPECT_EQ(got.offset % kShardAlignment, 0u);
    EXPECT_EQ(got.checksum, got.offset);
  }
  // Q6_K columns 96..320: seven blocks, in two groups.
  EXPECT_EQ(header->tensors[1].bytes, 8u * (2 * 2 + 7 * 26));
}

TEST(ShardFile, NamesSayForHowManyRanksTheFilesAre) {
  EXPECT_THAT(RankCountsOf({ShardName(3, 4), ShardName(0, 12), ShardName(1, 4), "config.json"}),
              ElementsAre(4, 12));
  EXPECT_THAT(
      RankCountsOf({"rank-2-of-2.lockstep", "rank--1-of-2.lockstep", "rank-01-of-2.lockstep",
                    "rank- 0-of-2.lockstep", "rank-0-of-2.lockstep.part", "rank-0-of-2.json",
                    "rank-0-of-99999999999999999999.lockstep", "x.lockstep", ""}),
      IsEmpty());
  EXPECT_EQ(RankCountsText({4, 12}), "4 and 12");
  EXPECT_EQ(RankCountsText({4}), "4");
  EXPECT_EQ(RankCountsText({}), "other");
}

TEST(ShardFile, SettingsAreOverEverythingButChecksums) {
  ShardHeader one = Example();
  PlaceShardTensors(&one);
  const uint64_t settings = ShardSettings(one, 0);
  ShardHeader other = one;
  other.settings = 7;
  other.tensors[0].checksum = 9;
  EXPECT_EQ(ShardSettings(other, 0), settings);
  other.tensors[0].slice.range.begin = 2;
  EXPECT_NE(ShardSettings(other, 0), settings);
  other = one;
  other.source = 1;
  EXPECT_NE(ShardSettings(other, 0), settings);
}

// What is replaced, by what, and what the error says.
constexpr std::array<const char*, 3> kWrongValues[] = {
    {"\"rank\":1", "\"rank\":2", "rank is not"},
    {"\"rank\":1", "\"rank\":-1", "rank is not"},
    {"[3.0,1.5]", "[]", "shares"},
    {"[3.0,1.5]", "[0.0,0.0]", "shares"},
    {"[3.0,1.5]", "[3.0,\"x\"]", "shares"},
    {"\"config\"", "\"konfig\"", "config is not a text"},
    {"0123456789abcdef", "0123456789ABCDEF", "source is not 16"},
    {"\"name\":\"rows\"", "\"name\":\"norm\"", "norm"},
    {"\"name\":\"rows\"", "\"name\":\"columns\"", "stands twice"},
    {"[8,320]", "[8,320,1]", "tensor rows: shape"},
    {"[8,320]", "[]", "tensor rows: shape"},
    {"[8,320]", "[9000000000000,9000000]", "tensor rows: shape"},
    {"[8,320]", "[8,352]", "tensor rows: bytes"},
    {"[8,320]", "[-8,320]", "tensor rows: shape"},
    {"\"slice\":\"rows\"", "\"slice\":\"diagonal\"", "tensor rows: slice"},
    {"\"slice\":\"rows\"", "\"slice\":\"elements\"", "tensor rows: slice"},
    {"\"begin\":3,\"end\":8", "\"begin\":3,\"end\":9", "tensor rows: end"},
    {"\"begin\":3,\"end\":8", "\"begin\":9,\"end\":8", "tensor rows: begin"},
    {"\"begin\":3,\"end\":8", "\"begin\":2,\"end\":8", "tensor rows: bytes"},
    {"\"begin\":96,", "\"begin\":97,", "tensor columns: begin"},
    {"\"Q4_K\"", "\"Q4_L\"", "tensor rows: format"},
    {"\"Q4_K\"", "\"Q8_0\"", "tensor rows: bytes"},
    {"\"scales\":\"BF16\"", "\"scales\":\"\"", "tensor mlx: format"},
    {"\"format\":\"BF16\"", "\"format\":\"Q8_0\"", "tensor norm: format"},
    {"\"offset\":4096", "\"offset\":4097", "tensor rows: offset"},
    {"\"offset\":4096", "\"offset\":0", "tensor rows: offset"},
    {"\"offset\":4096", "\"offset\":8192", "overlap"},
    {"\"offset\":4096", "\"offset\":9223372036854771712", "it was cut"},
    {"\"offset\":4096", "\"offset\":1e3", "tensor rows: offset"},
    {"\"tensors\":[", "\"tensors\":[7,", "no object"},
    {"\"tensors\":[", "\"tensors\":[[[[[[[[1]]]]]]],", ""},
    {"{\"source\"", "[\"source\"", "no JSON object"},
};

// The texts end in the middle: a reader that took all of it first would say that it is no JSON.
TEST(ShardFile, HostileHeadersAreRefusedWhereTheyStand) {
  std::string numbers, fields;
  for (int i = 0; i < 2000; ++i) {
    numbers += "1,";
    fields += absl::StrFormat("\"%d\":1,", i);
  }
  const uint64_t size = uint64_t{1} << 20;
  ExpectRefused(R"({"tensors":[{"shape":[)" + numbers, size, "shape has more than 1024 values");
  ExpectRefused(R"({"shares":[)" + numbers, size, "shares has more than 1024 values");
  ExpectRefused("{" + fields, size, "an object of more than 64 values");
  ExpectRefused(R"({"tensors":[{)" + fields, size, "an object of more than 64 values");
  ExpectRefused(R"({"tensors":[{},)", size, "a tensor: name is not a text");
  ExpectRefused(R"({"tensors":[{"shape":[[)", size, "shape nests too deep");
  ExpectRefused(R"({"tensors":[{"shape":{)", size, "shape nests too deep");
  ExpectRefused(R"({"shares":[[)", size, "shares nests too deep");
  ExpectRefused(R"({"config":{)", size, "config nests too deep");
}

TEST(ShardFile, EveryWrongValueIsRefusedByName) {
  const Made made = Make(Example());
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string text = made.text;
    const size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    text.replace(at, from.size(), to);
    text.resize(made.text.size(), ' ');  // the spaces behind it give way
    return text;
  };
  for (const auto& [from, to, needle] : kWrongValues)
    ExpectRefused(with(from, to), made.file_bytes, needle);
  ExpectRefused(made.text, made.file_bytes - 1, "tensor norm ends");
  ShardHeader empty = Example();
  empty.tensors.clear();
  Made listless = Make(empty);
  listless.text.replace(listless.text.find("tensors"), 7, "sensors");
  ExpectRefused(listless.text, listless.file_bytes, "tensors is not an array");
  // A tensor of which the rank holds nothing has its place all the same.
  ShardHeader placed = Example();
  PlaceShardTensors(&placed);
  const std::string none = absl::StrFormat("\"offset\":%d,\"bytes\":0,", placed.tensors[3].offset);
  for (const auto& [offset, needle] : std::vector<std::pair<std::string, std::string>>{
           {"9223372036854771712", "it was cut"},
           {std::to_string(made.file_bytes / 4096 * 4096 + 4096), "it was cut"},
           {std::to_string(placed.tensors[3].offset + 1), "tensor none: offset"},
           {"0", "tensor none: offset"}}) {
    ExpectRefused(with(none, "\"offset\":" + offset + ",\"bytes\":0,"), made.file_bytes, needle);
  }
}

TEST(ShardFile, AnEndlessConfigIsRefused) {
  ShardHeader header = Example();
  header.config = std::string(kMostConfigBytes + 1, ' ');
  const Made made = Make(header);
  ExpectRefused(made.text, made.file_bytes, "config");
}

TEST(ShardFile, AnEmptyTensorMayBeTheLastOne) {
  ShardHeader header = Example();
  std::swap(header.tensors[3], header.tensors[4]);
  const Made made = Make(header);
  const StatusOr<ShardHeader> read = ParseShardHeader(made.text, made.file_bytes, "r.lockstep");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->tensors[4].offset, made.file_bytes);
}

TEST(ShardFile, FilesWithAWrongBeginningAreRefused) {
  testing::TemporaryDirectory directory;
  ShardHeader header = Example();
  const uint64_t size = PlaceShardTensors(&header);
  std::string file = ShardBeginning(header);
  file.resize(size, '\0');
  const auto refused = [&](const std::string& contents, const std::string& needle) {
    directory.Write("r.lockstep", contents);
    const StatusOr<ShardHeader> read = ReadShardHeader(directory.File("r.lockstep"));
    ASSERT_FALSE(read.ok()) << needle;
    EXPECT_THAT(MessageOf(read.status()), HasSubstr(needle));
  };
  directory.Write("r.lockstep", file);
  EXPECT_TRUE(ReadShardHeader(directory.File("r.lockstep")).ok());
  refused("", "does not begin");
  refused(file.substr(0, 31), "does not begin");
  refused("X" + file.substr(1), "does not begin");
  std::string wrong = file;
  wrong[8] = 1;
  refused(wrong, "version 1");
  wrong = file;
  wrong[22] = 1;
  refused(wrong, "claims a header");
  wrong = file;
  wrong[file.find("\"begin\":3") + 8] = '4';
  refused(wrong, "does not match its checksum");
  refused(file.substr(0, size - 1), "it was cut");
}

TEST(ShardFile, DamagedHeadersNeverDoHarm) {
  const std::string text = Make(Example()).text;
  FuzzShardHeader(text);
  std::mt19937 random(static_cast<uint32_t>(testing::TestSeed()));
  for (int i = 0; i < 20'000; ++i) {
    std::string damaged = text.substr(0, text.find_last_not_of(' ') + 1);
    for (int j = random() % 4; j >= 0; --j) {
      const size_t at = random() % damaged.size();
      if (random() % 4 == 0) {
        damaged.erase(at, random() % 20);
      } else {
        damaged[at] = "0123456789-,:[]{}\"eE."[random() % 21];
      }
      if (damaged.empty()) break;
    }
    FuzzShardHeader(damaged);
  }
}

}  // namespace
}  // namespace lockstep
