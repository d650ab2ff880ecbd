#include "runtime/base/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <random>

#include "tests/runtime/base/gguf_fuzz_body.h"
#include "tests/support/gguf_builder.h"
#include "tests/support/golden.h"
#include "tests/support/seed.h"

namespace lockstep {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::RawBytes;
using testing::SourcePath;

constexpr uint32_t kF32 = 0, kQ8_0 = 8;

// A small sound file: two keys, two tensors.
GgufBuilder Small() {
  GgufBuilder builder;
  builder.SetText("general.architecture", "glm4moe").SetInteger("glm4moe.block_count", 4);
  builder.AddTensor("a.weight", {64, 2}, kQ8_0, std::string(136, 'a'));
  builder.AddTensor("b.weight", {3}, kF32, std::string(12, 'b'));
  return builder;
}

Status Parse(const std::string& bytes, Gguf* gguf) {
  return ParseGgufHeader(bytes, bytes.size(), "x.gguf", gguf);
}

void ExpectRefused(const std::string& bytes, const std::string& what) {
  Gguf gguf;
  const Status status = Parse(bytes, &gguf);
  ASSERT_FALSE(status.ok()) << "not refused; expected: " << what;
  EXPECT_EQ(KindOf(status), ErrorKind::kModel);
  EXPECT_THAT(MessageOf(status), AllOf(HasSubstr("x.gguf"), HasSubstr(what)));
}

TEST(GgufTest, ReadsKeysAndTensors) {
  Gguf gguf;
  const std::string bytes = Small().Build();
  ASSERT_TRUE(Parse(bytes, &gguf).ok());
  EXPECT_EQ(*gguf.Text("general.architecture"), "glm4moe");
  EXPECT_EQ(*gguf.Integer("glm4moe.block_count"), 4);
  EXPECT_EQ(gguf.Integer("general.architecture"), nullptr);
  EXPECT_EQ(gguf.Text("absent"), nullptr);
  const GgufTensor& a = gguf.tensors.at("a.weight");
  EXPECT_THAT(a.shape, ElementsAre(64, 2));
  EXPECT_EQ(a.bytes, 136u);
  EXPECT_EQ(bytes.substr(a.offset, a.bytes), std::string(136, 'a'));
  const GgufTensor& b = gguf.tensors.at("b.weight");
  EXPECT_EQ(bytes.substr(b.offset, b.bytes), std::string(12, 'b'));
}

TEST(GgufTest, EveryKindOfValueIsRead) {
  GgufBuilder builder;
  builder.SetRaw("u8", 0, RawBytes<uint8_t>(200)).SetRaw("i8", 1, RawBytes<int8_t>(-100));
  builder.SetRaw("u16", 2, RawBytes<uint16_t>(60000)).SetRaw("i16", 3, RawBytes<int16_t>(-30000));
  builder.SetRaw("u32", 4, RawBytes<uint32_t>(4000000000)).SetRaw("i32", 5, RawBytes<int32_t>(-2));
  builder.SetRaw("f32", 6, RawBytes(1.5f)).SetRaw("true", 7, RawBytes<uint8_t>(1));
  builder.SetText("text", "päd").SetRaw("f64", 12, RawBytes(0.1));
  builder.SetRaw("u64", 10, RawBytes<uint64_t>(INT64_MAX)).SetRaw("i64", 11, RawBytes<int64_t>(-5));
  builder.Set("texts", std::vector<std::string>{"a", "", "c"});
  builder.Set("flags", std::vector<bool>{true, false});
  builder.SetRaw("bytes", 9, RawBytes<uint32_t>(0) + RawBytes<uint64_t>(3) + "\x01\x02\xff");
  builder.Set("reals", std::vector<double>{0.5, -1});
  builder.Set("none", std::vector<int64_t>{});
  Gguf gguf;
  const Status status = Parse(builder.Build(), &gguf);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(*gguf.Integer("u8"), 200);
  EXPECT_EQ(*gguf.Integer("i8"), -100);
  EXPECT_EQ(*gguf.Integer("u16"), 60000);
  EXPECT_EQ(*gguf.Integer("i16"), -30000);
  EXPECT_EQ(*gguf.Integer("u32"), 4000000000);
  EXPECT_EQ(*gguf.Integer("i32"), -2);
  EXPECT_EQ(*gguf.Integer("u64"), INT64_MAX);
  EXPECT_EQ(*gguf.Integer("i64"), -5);
  EXPECT_EQ(*gguf.Number("f32"), 1.5);
  EXPECT_EQ(*gguf.Number("f64"), 0.1);
  EXPECT_TRUE(*gguf.Flag("true"));
  EXPECT_EQ(*gguf.Text("text"), "päd");
  EXPECT_THAT(*gguf.Texts("texts"), ElementsAre("a", "", "c"));
  EXPECT_THAT(*gguf.Integers("bytes"), ElementsAre(1, 2, 255));
  EXPECT_THAT(*gguf.Integers("none"), ElementsAre());
  EXPECT_EQ(std::get<std::vector<bool>>(gguf.metadata.at("flags")),
            (std::vector<bool>{true, false}));
  EXPECT_EQ(std::get<std::vector<double>>(gguf.metadata.at("reals")),
            (std::vector<double>{0.5, -1}));
}

TEST(GgufTest, EveryTypeHasItsSize) {
  const std::vector<std::pair<uint32_t, uint64_t>> sizes = {
      {0, 1024}, {1, 512},  {30, 512}, {2, 144},  {3, 160},  {6, 176},  {7, 192},  {8, 272},
      {10, 84},  {11, 110}, {12, 144}, {13, 176}, {14, 210}, {20, 144}, {23, 136}, {39, 136}};
  for (const auto& [type, bytes] : sizes) {
    GgufBuilder builder;
    builder.AddTensor("w", {256}, type, std::string(bytes, 'x'));
    Gguf gguf;
    const Status status = Parse(builder.Build(), &gguf);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(gguf.tensors.at("w").bytes, bytes) << FindGgufType(type)->name;
  }
}

TEST(GgufTest, EveryCutOfAFileIsRefusedAndEveryShortReadWantsMore) {
  const GgufBuilder builder = Small();
  const std::string bytes = builder.Build();
  for (size_t size = 0; size < bytes.size(); ++size) {
    Gguf gguf;
    const Status status = Parse(bytes.substr(0, size), &gguf);
    ASSERT_FALSE(status.ok()) << size;
    EXPECT_EQ(KindOf(status), ErrorKind::kModel);
  }
  const size_t header = builder.Header().size();
  for (size_t size = 0; size < bytes.size(); ++size) {
    Gguf gguf;
    bool more = false;
    const Status status =
        ParseGgufBeginning(bytes.substr(0, size), bytes.size(), "x.gguf", &gguf, &more);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(more, size < header) << size;
  }
}

std::string WithCounts(uint64_t tensors, uint64_t keys) {
  std::string bytes = Small().Build();
  bytes.replace(8, 16, RawBytes(tensors) + RawBytes(keys));
  return bytes;
}

std::string WithArray(uint32_t kind, uint64_t count) {
  return Small().SetRaw("list", 9, RawBytes(kind) + RawBytes(count)).Build();
}

TEST(GgufTest, LyingCountsAreRefusedBeforeMemoryIsTaken) {
  ExpectRefused(WithCounts(UINT64_MAX, 2), "claims");
  ExpectRefused(WithCounts(2, UINT64_MAX), "claims");
  ExpectRefused(WithCounts(2, 1000), "claims 1000 metadata keys");
  ExpectRefused(WithCounts(0x7fff, 2), "claims 32767 tensors");
  ExpectRefused(WithArray(0, UINT64_MAX), "list has");
  ExpectRefused(WithArray(8, 4000000), "more than the rest of the file can hold");
  ExpectRefused(WithArray(8, 4000001), "all arrays together");
  ExpectRefused(Small().SetRaw("t", 8, RawBytes<uint64_t>(UINT64_MAX)).Build(), "a text of");
  ExpectRefused(Small().SetRaw("t", 8, RawBytes<uint64_t>(1 << 20)).Build(), "beyond the end");
}

TEST(GgufTest, AbsurdMetadataIsRefused) {
  ExpectRefused("nonsense" + std::string(100, 'x'), "'GGUF'");
  ExpectRefused("GGUF", "too short");
  GgufBuilder old = Small();
  old.version = 2;
  ExpectRefused(old.Build(), "version 2");
  old.version = 0x03000000;
  ExpectRefused(old.Build(), "big-endian");
  const std::string nested = RawBytes<uint32_t>(9) + RawBytes<uint64_t>(1) + RawBytes<uint32_t>(0) +
                             RawBytes<uint64_t>(1) + "x";
  ExpectRefused(Small().SetRaw("list", 9, nested).Build(), "arrays within arrays");
  ExpectRefused(Small().SetRaw("k", 13, "").Build(), "unknown kind 13");
  ExpectRefused(Small().SetRaw("k", 9, RawBytes<uint32_t>(77) + RawBytes<uint64_t>(1)).Build(),
                "unknown kind 77");
  ExpectRefused(Small().SetRaw("k", 7, "\x02").Build(), "boolean of value 2");
  ExpectRefused(Small().SetRaw("k", 10, RawBytes<uint64_t>(1ull << 63)).Build(), "2^63");
  ExpectRefused(Small().AppendRaw("general.architecture", 0, "x").Build(), "stands twice");
  ExpectRefused(Small().SetInteger("", 1).Build(), "empty");
  ExpectRefused(Small().SetInteger("new\nline", 1).Build(), "not printable");
  ExpectRefused(Small().SetInteger(std::string(2000, 'k'), 1).Build(), "a text of 2000 bytes");
}

std::string Changed(const std::function<void(GgufBuilder&)>& change) {
  GgufBuilder builder = Small();
  change(builder);
  return builder.Build();
}

std::string WithShape(const std::vector<int64_t>& sizes) {
  return Changed([&](GgufBuilder& b) { b.tensors[1].shape = sizes; });
}

TEST(GgufTest, ImpossibleTensorsAreRefused) {
  ExpectRefused(WithShape({}), "0 dimensions");
  ExpectRefused(WithShape({1, 1, 1, 1, 1}), "5 dimensions");
  ExpectRefused(WithShape({0}), "impossible shape");
  ExpectRefused(WithShape({-3}), "impossible shape");
  ExpectRefused(WithShape({INT64_MAX, INT64_MAX}), "impossible shape");
  ExpectRefused(WithShape({1 << 16, 1 << 16, 1 << 16, 1 << 16}), "impossible shape");
  ExpectRefused(WithShape({4000}), "ends beyond the file");
  ExpectRefused(Changed([](GgufBuilder& b) { b.tensors[0].shape = {48, 2}; }), "blocks of 32");
  ExpectRefused(Changed([](GgufBuilder& b) { b.tensors[0].type = 16; }),
                "tensor a.weight is of type IQ2_XXS, which is not read; use a file of the types "
                "F32, F16, BF16, Q4_0");
  ExpectRefused(Changed([](GgufBuilder& b) { b.tensors[0].type = 4; }), "type number 4");
  ExpectRefused(Changed([](GgufBuilder& b) { b.tensors[1].name = "a.weight"; }), "stands twice");
  ExpectRefused(Changed([](GgufBuilder& b) { b.tensors[1].offset = 161; }),
                "multiple of the alignment");
  ExpectRefused(Changed([](GgufBuilder& b) { b.tensors[1].offset = 128; }),
                "a.weight and b.weight overlap");
  ExpectRefused(Changed([](GgufBuilder& b) { b.tensors[0].offset = 160; }), "beyond the file");
  ExpectRefused(Changed([](GgufBuilder& b) { b.tensors[1].offset = 1 << 30; }), "beyond the file");
  ExpectRefused(Changed([](GgufBuilder& b) { b.tensors[1].offset = INT64_MAX - 31; }),
                "beyond the file");
}

TEST(GgufTest, AlignmentIsFollowedAndChecked) {
  GgufBuilder builder = Small();
  builder.alignment = 256;
  builder.SetInteger("general.alignment", 256);
  const std::string bytes = builder.Build();
  Gguf gguf;
  ASSERT_TRUE(Parse(bytes, &gguf).ok());
  EXPECT_EQ(gguf.tensors.at("b.weight").offset % 256, 0u);
  EXPECT_EQ(bytes.substr(gguf.tensors.at("b.weight").offset, 12), std::string(12, 'b'));
  for (const int64_t wrong : {0, -32, 24, 1 << 30}) {
    ExpectRefused(Small().SetInteger("general.alignment", wrong).Build(), "power of two");
  }
  ExpectRefused(Small().SetText("general.alignment", "32").Build(), "power of two");
}

TEST(GgufTest, DamagedFilesNeverCrash) {
  std::mt19937_64 random(testing::TestSeed());
  for (const char* name : {"tiny-a-Q4_0", "tiny-flash-F16"}) {
    const std::string golden =
        "\xff" + testing::ReadAll(SourcePath(absl::StrFormat("tests/goldens/models/%s.gguf", name)))
                     .substr(0, 40'000);
    FuzzGguf(golden);
    for (int round = 0; round < 300; ++round) {
      std::string damaged = golden.substr(0, 1 + random() % golden.size());
      for (uint64_t i = random() % 4; i > 0; --i) {
        // Mostly where the counts and the list of tensors are.
        const size_t range =
            random() % 2 == 0 ? std::min<size_t>(damaged.size(), 1500) : damaged.size();
        damaged[random() % range] = static_cast<char>(random());
      }
      FuzzGguf(damaged);
    }
  }
}

}  // namespace
}  // namespace lockstep
