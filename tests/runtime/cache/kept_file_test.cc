// What is written comes back; anything else is refused, whatever is wrong with it.
#include "runtime/cache/kept_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "tests/fuzz/kept_file_fuzz_body.h"
#include "tests/fuzz/replay.h"
#include "tests/support/golden.h"
#include "tests/support/seed.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;
using testing::ReadAll;
using testing::TemporaryDirectory;

BlockTokens Tokens(int32_t first) {
  BlockTokens tokens;
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = first + static_cast<int32_t>(i);
  return tokens;
}

KeptHeader SmallHeader() {
  return {.key = "kernels: ref\nranks: 3\n",
          .rank = 1,
          .ranks = 3,
          .page_bytes = 21,
          .save = 77,
          .blocks = {{-1, Tokens(5)}, {0, Tokens(5)}, {-1, Tokens(6)}, {0, Tokens(7)}}};
}

std::vector<std::byte> Page(size_t place) {
  std::vector<std::byte> page(21);
  for (size_t i = 0; i < page.size(); ++i) page[i] = static_cast<std::byte>(place * 50 + i);
  return page;
}

std::string WriteSmall(const TemporaryDirectory& directory, uint64_t save = 77) {
  const std::string path = directory.File("small.kv");
  KeptHeader header = SmallHeader();
  header.save = save;
  auto writer = KeptWriter::Begin(path, header);
  EXPECT_TRUE(writer.ok()) << writer.status();
  for (size_t i = 0; i < header.blocks.size(); ++i) EXPECT_TRUE((*writer)->Append(Page(i)).ok());
  EXPECT_TRUE((*writer)->End().ok());
  EXPECT_TRUE((*writer)->Replace().ok());
  return path;
}

// The header and every page, or why not.
Status ReadWhole(const std::string& path) {
  LOCKSTEP_ASSIGN_OR_RETURN(const auto reader, KeptReader::Open(path));
  std::vector<std::byte> page(reader->header().page_bytes);
  for (size_t i = 0; i < reader->header().blocks.size(); ++i)
    LOCKSTEP_RETURN_IF_ERROR(reader->Read(i, page));
  return OkStatus();
}

TEST(KeptFile, ComesBackAsItWas) {
  const TemporaryDirectory directory;
  const auto reader = KeptReader::Open(WriteSmall(directory));
  ASSERT_TRUE(reader.ok()) << reader.status();
  const KeptHeader want = SmallHeader(), &header = (*reader)->header();
  EXPECT_EQ(header.key, want.key);
  EXPECT_EQ(header.rank, 1);
  EXPECT_EQ(header.ranks, 3);
  EXPECT_EQ(header.page_bytes, 21u);
  EXPECT_EQ(header.save, 77u);
  EXPECT_EQ(header.blocks, want.blocks);
  for (const size_t place : {size_t{2}, size_t{0}, size_t{3}, size_t{1}}) {
    std::vector<std::byte> page(21);
    ASSERT_TRUE((*reader)->Read(place, page).ok());
    EXPECT_EQ(page, Page(place));
  }
}

TEST(KeptFile, IsItsOwnersAlone) {
  const TemporaryDirectory directory;
  struct stat info {};
  ASSERT_EQ(stat(WriteSmall(directory).c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  ASSERT_TRUE(MakeDirectory(directory.File("a/b"), 0700).ok());
  ASSERT_EQ(stat(directory.File("a/b").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  EXPECT_TRUE(MakeDirectory(directory.File("a/b"), 0700).ok()) << "it is there";
  EXPECT_FALSE(MakeDirectory(directory.File("small.kv"), 0700).ok());
  EXPECT_FALSE(MakeDirectory(directory.File("small.kv/below"), 0700).ok());
}

TEST(KeptFile, AnyByteThatChangedIsFound) {
  const TemporaryDirectory directory;
  const std::string path = WriteSmall(directory), whole = ReadAll(path);
  ASSERT_TRUE(ReadWhole(path).ok());
  for (size_t at = 0; at < whole.size(); ++at) {
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 4);
    directory.Write("small.kv", damaged);
    EXPECT_FALSE(ReadWhole(path).ok()) << "byte " << at;
  }
}

TEST(KeptFile, AnyOtherLengthIsRefused) {
  const TemporaryDirectory directory;
  const std::string path = WriteSmall(directory), whole = ReadAll(path);
  for (size_t length = 0; length < whole.size(); ++length) {
    directory.Write("small.kv", whole.substr(0, length));
    EXPECT_FALSE(KeptReader::Open(path).ok()) << length << " bytes";
  }
  directory.Write("small.kv", whole + '\0');
  EXPECT_FALSE(KeptReader::Open(path).ok());
}

// Two pages that changed places, and a page of another save, are whole and still wrong.
TEST(KeptFile, APageBelongsToItsPlaceAndSave) {
  const TemporaryDirectory directory;
  const std::string path = WriteSmall(directory);
  std::string file = ReadAll(path);
  const size_t record = 21 + 8, last = file.size() - record;
  const std::string third = file.substr(last - record, record), fourth = file.substr(last);
  directory.Write("small.kv", file.substr(0, last - record) + fourth + third);
  EXPECT_TRUE(KeptReader::Open(path).ok());
  EXPECT_THAT(MessageOf(ReadWhole(path)), HasSubstr("block 2 are damaged"));
  // The same pages at the same places, of another save.
  const std::string other = ReadAll(WriteSmall(directory, 78));
  ASSERT_TRUE(ReadWhole(path).ok());
  directory.Write("small.kv", file.substr(0, last) + other.substr(last));
  EXPECT_THAT(MessageOf(ReadWhole(path)), HasSubstr("block 3 are damaged"));
}

TEST(KeptFile, IsNotReadWhereAnotherUserMayHaveWrittenIt) {
  const TemporaryDirectory directory;
  const std::string path = WriteSmall(directory);
  const auto refusal = [&](const std::string& of) {
    const auto reader = KeptReader::Open(of);
    return reader.ok() ? std::string() : MessageOf(reader.status());
  };
  EXPECT_EQ(refusal(path), "");
  for (const mode_t mode : {0620, 0602}) {
    ASSERT_EQ(chmod(path.c_str(), mode), 0);
    EXPECT_THAT(refusal(path), HasSubstr("others may write it"));
  }
  ASSERT_EQ(chmod(path.c_str(), 0644), 0);
  EXPECT_EQ(refusal(path), "") << "who may only read it may";
  for (const mode_t mode : {0770, 0707, 01777}) {
    ASSERT_EQ(chmod(directory.path().c_str(), mode), 0);
    EXPECT_THAT(refusal(path), HasSubstr("others may write it"));
  }
  ASSERT_EQ(chmod(directory.path().c_str(), 0700), 0);
  ASSERT_EQ(symlink("small.kv", directory.File("link.kv").c_str()), 0);
  EXPECT_THAT(refusal(directory.File("link.kv")), HasSubstr("is a link"));
  if (chown(path.c_str(), 4711, static_cast<gid_t>(-1)) == 0) {  // root may
    EXPECT_THAT(refusal(path), HasSubstr("belongs to user 4711"));
  }
  // None there is no error; a place that cannot be looked into is one.
  const auto none = KeptReader::Open(directory.File("none.kv"));
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_EQ(*none, nullptr);
  directory.Write("plain", "");
  EXPECT_NE(refusal(directory.File("plain") + "/small.kv"), "");
}

TEST(KeptFile, WithoutAnEndWhatWasThereStays) {
  const TemporaryDirectory directory;
  const std::string path = WriteSmall(directory), whole = ReadAll(path);
  {
    const auto writer = KeptWriter::Begin(path, SmallHeader());
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE((*writer)->Append(Page(9)).ok());
    ASSERT_TRUE((*writer)->End().ok());
  }
  EXPECT_EQ(ReadAll(path), whole);
  // What a process that was killed left goes with the next one; nothing else does.
  directory.Write("small.kv.tmp.4711", "half");
  directory.Write("small.kv.old", "mine");
  FileReplacement::RemoveLeftOvers(path);
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(directory.path()))
    names.push_back(entry.path().filename().string());
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("small.kv", "small.kv.old"));
}

// Numbers that no damage makes, but a hand: under a right digest.
TEST(KeptFile, LiesAreRefused) {
  const uint64_t pages = 4 * (21 + 8);
  const std::vector<std::byte> sound = testing::KeptHeaderBytes(SmallHeader());
  ASSERT_TRUE(ParseKeptHeader(sound, pages).ok());
  struct Lie {
    const char* what;
    std::function<void(KeptHeader*)> tell;
    const char* answer;
  };
  const Lie lies[] = {
      {"rank beyond", [](KeptHeader* h) { h->rank = 3; }, "rank 3 of 3"},
      {"rank below", [](KeptHeader* h) { h->rank = -1; }, "rank -1"},
      {"no ranks", [](KeptHeader* h) { h->rank = h->ranks = 0; }, "rank 0 of 0"},
      {"small pages", [](KeptHeader* h) { h->page_bytes = 20; }, "pages of 20 bytes"},
      {"huge pages", [](KeptHeader* h) { h->page_bytes = UINT64_MAX - 7; }, "bytes of pages"},
      {"pages that overflow", [](KeptHeader* h) { h->page_bytes = (uint64_t{1} << 62) + 21; },
       "bytes of pages"},
      {"one block less", [](KeptHeader* h) { h->blocks.pop_back(); }, "not 3 pages"},
      {"no block", [](KeptHeader* h) { h->blocks.clear(); }, "not 0 pages"},
      {"behind itself", [](KeptHeader* h) { h->blocks[2].before = 2; }, "stands behind block 2"},
      {"behind a later one", [](KeptHeader* h) { h->blocks[0].before = 3; }, "block 3"},
      {"behind less than none", [](KeptHeader* h) { h->blocks[1].before = -2; }, "block -2"},
      {"negative token", [](KeptHeader* h) { h->blocks[1].tokens[15] = -1; }, "token -1"},
      {"twins", [](KeptHeader* h) { h->blocks[2].tokens = Tokens(5); }, "twice"},
      {"a key that is no text", [](KeptHeader* h) { h->key[3] = '\x1b'; }, "no text"},
      {"a long key", [](KeptHeader* h) { h->key.assign(5'000, 'x'); }, "no text"}};
  for (const Lie& lie : lies) {
    KeptHeader header = SmallHeader();
    lie.tell(&header);
    const auto parsed = ParseKeptHeader(testing::KeptHeaderBytes(header), pages);
    ASSERT_FALSE(parsed.ok()) << lie.what;
    EXPECT_THAT(MessageOf(parsed.status()), HasSubstr(lie.answer)) << lie.what;
  }
  // Counts of the lists that are not those of what follows.
  for (const size_t from_end : {size_t{4 * 64 + 4}, size_t{4 * 64 + 4 + 4 * 4 + 4}}) {
    for (const uint32_t count : {3u, 5u, 63u, 65u, 0x40000000u, 0xffffffffu}) {
      std::vector<std::byte> bytes = sound;
      std::memcpy(bytes.data() + bytes.size() - from_end, &count, sizeof(count));
      EXPECT_FALSE(ParseKeptHeader(bytes, pages).ok()) << from_end << ": " << count;
    }
  }
}

TEST(KeptFile, SaysWhatIsWrongWithOtherFiles) {
  const TemporaryDirectory directory;
  const std::string path = WriteSmall(directory), whole = ReadAll(path);
  const auto with = [&](size_t at, const std::string& bytes) {
    std::string changed = whole;
    directory.Write("small.kv", changed.replace(at, bytes.size(), bytes));
    const auto reader = KeptReader::Open(path);
    EXPECT_FALSE(reader.ok());
    return reader.ok() ? std::string() : MessageOf(reader.status());
  };
  EXPECT_THAT(with(0, "GGUF"), HasSubstr("small.kv: it is no file of KV blocks"));
  EXPECT_THAT(with(8, "\x02"), HasSubstr("version 2"));
  EXPECT_THAT(with(16, std::string(8, '\x7f')), HasSubstr("says that its header has"));
  EXPECT_THAT(with(24, "x"), HasSubstr("header is damaged"));
}

TEST(KeptFile, FuzzSeedsAndDamagedCopiesDoNoHarm) {
  EXPECT_GE(testing::ReplaySeeds("kept_file", 200,
                                 [](std::string_view data) { (void)FuzzKeptHeader(data); }),
            3);
  // Otherwise a fuzzer starts from nothing but refusals.
  EXPECT_TRUE(FuzzKeptHeader(ReadAll(testing::SeedPath("kept_file", "chains"))));
  EXPECT_TRUE(FuzzKeptHeader(ReadAll(testing::SeedPath("kept_file", "empty"))));
  EXPECT_FALSE(FuzzKeptHeader(ReadAll(testing::SeedPath("kept_file", "twins"))));
}

}  // namespace
}  // namespace lockstep
