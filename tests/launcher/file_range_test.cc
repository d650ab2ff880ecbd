// What a client may ask of a file, and which bytes it gets.
#include "launcher/file_range.h"

#include <fcntl.h>

#include <random>

#include "gtest/gtest.h"
#include "tests/support/seed.h"
#include "tests/support/temporary.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

using testing::TemporaryDirectory;

struct OpenFile {
  explicit OpenFile(size_t bytes) : contents(bytes, '\0') {
    std::mt19937_64 random(testing::TestSeed());
    for (char& c : contents) c = static_cast<char>(random());
    directory.Write("file", contents);
    fd = UniqueFd(open(directory.File("file").c_str(), O_RDONLY | O_CLOEXEC));
  }
  TemporaryDirectory directory;
  std::string contents;
  UniqueFd fd;
};

std::string Piecewise(const std::string& contents, const StridedRange& range) {
  std::string text;
  for (uint64_t i = 0; i < range.count; ++i)
    text += contents.substr(range.offset + i * range.stride, range.bytes);
  return text;
}

TEST(FileRange, PiecesComeOneBehindTheOther) {
  const OpenFile file(200'000);
  std::mt19937_64 random(testing::TestSeed());
  for (int i = 0; i < 300; ++i) {
    const uint64_t most = i % 2 == 0 ? 100 : 20'000;  // below and above the buffer
    StridedRange range;
    range.bytes = 1 + random() % most;
    range.stride = range.bytes + random() % most;
    range.offset = random() % 1000;
    range.count = 1 + random() % ((200'000 - range.offset - range.bytes) / range.stride + 1);
    PieceReader reader(range);
    std::string got;
    std::vector<std::byte> buffer(1 + random() % 5000);
    while (!reader.done()) {
      const size_t bytes = reader.Read(file.fd.get(), buffer);
      ASSERT_GT(bytes, 0u);
      got.append(reinterpret_cast<const char*>(buffer.data()), bytes);
      ASSERT_LE(got.size(), range.total());
    }
    ASSERT_TRUE(got == Piecewise(file.contents, range))
        << range.offset << " " << range.bytes << " " << range.stride << " " << range.count;
  }
}

TEST(FileRange, NoReadTakesLong) {
  const OpenFile file(200'000);
  std::vector<std::byte> buffer(100'000);
  // Too far apart to be read together: 64 at a time.
  PieceReader far({0, 1, 120'000, 2});
  EXPECT_EQ(far.Read(file.fd.get(), buffer), 2u);
  EXPECT_TRUE(far.done());
  std::vector<std::byte> small(300);
  PieceReader many({0, 1, 400, 500});
  EXPECT_EQ(many.Read(file.fd.get(), small), 64u);
  EXPECT_FALSE(many.done());
  // Much between them: a few MiB, of which one byte in 50 000 is wanted.
  TemporaryDirectory directory;
  directory.Write("large", std::string(20 << 20, 'x'));
  const UniqueFd large(open(directory.File("large").c_str(), O_RDONLY | O_CLOEXEC));
  PieceReader sparse({0, 1, 50'000, 400});
  EXPECT_LE(sparse.Read(large.get(), buffer), 200u);
  EXPECT_FALSE(sparse.done());
}

TEST(FileRange, AFileThatBecameShorterGivesNothing) {
  const OpenFile file(1000);
  std::vector<std::byte> buffer(100'000);
  EXPECT_EQ(PieceReader({900, 101}).Read(file.fd.get(), buffer), 0u);
  EXPECT_EQ(PieceReader({0, 10, 500, 3}).Read(file.fd.get(), buffer), 0u);
  EXPECT_EQ(PieceReader({0, 10, 500, 2}).Read(file.fd.get(), buffer), 20u);
  EXPECT_TRUE(PieceReader().done());
  EXPECT_TRUE(PieceReader({5, 0}).done());
}

TEST(FileRange, StridedRangesLieInTheFile) {
  const std::optional<FileRange> range = ParseFileRange("strided=2-3-4-2", 9);
  ASSERT_TRUE(range.has_value());
  EXPECT_EQ(range->text, "strided 2-3-4-2/9");
  EXPECT_EQ(range->pieces.offset, 2u);
  EXPECT_EQ(range->pieces.bytes, 3u);
  EXPECT_EQ(range->pieces.stride, 4u);
  EXPECT_EQ(range->pieces.count, 2u);
  for (const char* text :
       {"strided=2-3-4-3", "strided=3-3-4-2", "strided=2-0-4-2", "strided=2-3-4-0",
        "strided=2-3-2-2", "strided=2-3-4", "strided=2-3-4-2-1", "strided=2-3-4-", "strided=-3-4-2",
        "strided=2-3-4-2 ", "strided=0-1-1-18446744073709551615",
        "strided=", "strided=18446744073709551615-1-1-1", "strided=0-1-9223372036854775808-3",
        "strided=0-18446744073709551615-18446744073709551615-2", "strided=2-3--4-2",
        "stride=2-3-4-2", "strided 2-3-4-2"}) {
    EXPECT_FALSE(ParseFileRange(text, 9).has_value()) << text;
  }
}

}  // namespace
}  // namespace lockstep
