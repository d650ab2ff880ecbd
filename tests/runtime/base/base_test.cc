#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <atomic>
#include <cmath>
#include <filesystem>
#include <limits>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "runtime/base/dtype.h"
#include "runtime/base/file.h"
#include "runtime/base/options.h"
#include "runtime/base/os.h"
#include "runtime/base/status.h"
#include "runtime/base/thread_pool.h"
#include "runtime/base/version.h"
#include "tests/support/temporary.h"

namespace lockstep {
namespace {

using ::testing::HasSubstr;

TEST(Status, KeepsItsKindThroughAnnotations) {
  const Status status = Annotate(PeerLostError("rank %d died", 2), "step 7");
  EXPECT_EQ(KindOf(status), ErrorKind::kPeerLost);
  EXPECT_EQ(ExitCode(status), 4);
  EXPECT_EQ(MessageOf(status), "step 7: rank 2 died");
  EXPECT_EQ(LostRank(status), -1);
  EXPECT_EQ(LostRank(Annotate(WithLostRank(status, 12), "again")), 12);
}

TEST(Status, GivesTheExitCodesOfTheContract) {
  EXPECT_EQ(ExitCode(OkStatus()), 0);
  EXPECT_EQ(ExitCode(UsageError("x")), 2);
  EXPECT_EQ(ExitCode(ModelError("x")), 3);
  EXPECT_EQ(ExitCode(PeerLostError("x")), 4);
  EXPECT_EQ(ExitCode(InterruptedError()), 130);
  EXPECT_EQ(ExitCode(absl::UnknownError("made elsewhere")), 1);
}

TEST(Bytes, ReadBackWhatWasWritten) {
  ByteWriter writer;
  writer.Put<int32_t>(-5);
  writer.PutString("héllo");
  writer.PutVector(std::vector<float>{1.5f, -2.0f});
  ByteReader reader(writer.bytes());
  EXPECT_EQ(reader.Get<int32_t>(), -5);
  EXPECT_EQ(reader.GetString(), "héllo");
  EXPECT_EQ(reader.GetVector<float>(), (std::vector<float>{1.5f, -2.0f}));
  EXPECT_TRUE(reader.Finish("message").ok());
}

TEST(Bytes, EveryTruncationIsAnErrorAndNoLengthIsBelieved) {
  ByteWriter writer;
  writer.PutVector(std::vector<int64_t>{1, 2, 3});
  writer.PutString("abc");
  for (size_t size = 0; size < writer.bytes().size(); ++size) {
    ByteReader reader(std::span(writer.bytes()).first(size));
    (void)reader.GetVector<int64_t>();
    (void)reader.GetString();
    EXPECT_FALSE(reader.Finish("message").ok()) << size;
  }
  const std::vector<std::byte> lie(4, std::byte{0xff});
  ByteReader reader(lie);
  EXPECT_TRUE(reader.GetVector<int64_t>().empty());
  EXPECT_FALSE(reader.ok());
}

TEST(Dtype, WidensEveryHalfAsTheStandardSays) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const int exponent = static_cast<int>(bits >> 10 & 31);
    const int fraction = static_cast<int>(bits & 1023);
    double want =
        exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) want = fraction == 0 ? INFINITY : NAN;
    if (bits & 0x8000) want = -want;
    const float got = HalfToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got));
    } else {
      EXPECT_EQ(got, want) << bits;
    }
  }
}

TEST(Dtype, RoundsToBfloat16NearestEven) {
  EXPECT_EQ(FloatToBf16(1.0f), 0x3f80);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808000u)), 0x3f80);  // tie to even
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f818000u)), 0x3f82);
  EXPECT_EQ(FloatToBf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_TRUE(std::isnan(Bf16ToFloat(FloatToBf16(NAN))));
}

TEST(ThreadPool, EveryItemRunsOnceWhateverTheCounts) {
  for (const int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (const int64_t items : {0, 1, 7, 64, 1000}) {
      for (const int64_t grain : {1, 8, 100}) {
        std::vector<std::atomic<int>> runs(static_cast<size_t>(items));
        pool.ParallelFor(items, grain, [&](int64_t begin, int64_t end, int thread) {
          EXPECT_LT(thread, threads);
          for (int64_t i = begin; i < end; ++i) ++runs[static_cast<size_t>(i)];
        });
        for (const auto& count : runs) EXPECT_EQ(count.load(), 1);
      }
    }
  }
}

TEST(ThreadPool, WakesAfterItsHelpersWentToSleep) {
  ThreadPool pool(3);
  for (int round = 0; round < 5; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    std::atomic<int> sum{0};
    pool.ParallelFor(
        300, 1, [&](int64_t begin, int64_t end, int) { sum += static_cast<int>(end - begin); });
    EXPECT_EQ(sum.load(), 300);
  }
}

TEST(ThreadPool, HelpersStayOnTheirCpusIfThereIsOneForEach) {
  const std::vector<int> cpus = os::AllowedCpus();
  if (cpus.size() < 2) GTEST_SKIP() << "only one CPU may be used here";
  const auto count = static_cast<int>(cpus.size());
  const auto masks = [&](int threads) {
    std::vector<std::vector<int>> found(static_cast<size_t>(threads));
    ThreadPool pool(threads, cpus);
    pool.ParallelFor(threads, 1, [&](int64_t, int64_t, int thread) {
      found[static_cast<size_t>(thread)] = os::AllowedCpus();
    });
    return found;
  };
  const auto bound = masks(count);
  for (int thread = 1; thread < count; ++thread)
    EXPECT_EQ(bound[static_cast<size_t>(thread)],
              std::vector<int>{cpus[static_cast<size_t>(thread)]});
  EXPECT_EQ(bound[0], cpus);  // the caller is left alone
  for (const auto& mask : masks(count + 1)) EXPECT_EQ(mask, cpus);
  EXPECT_EQ(os::AllowedCpus(), cpus);
}

TEST(File, AtomicWriteReplacesAndLeavesNothingBehind) {
  const testing::TemporaryDirectory directory;
  const std::string path = directory.File("out");
  for (const std::string text : {"first", "second, longer"}) {
    ASSERT_TRUE(WriteFileAtomically(path, std::as_bytes(std::span(text))).ok());
    EXPECT_EQ(ReadTextFile(path).value(), text);
  }
  int files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(directory.path()))
    ++files;
  EXPECT_EQ(files, 1);
  EXPECT_FALSE(WriteFileAtomically("/nowhere/out", {}).ok());
}

int OpenDescriptors() {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd"))
    ++count;
  return count;
}

TEST(File, AnAtomicWriteThatFailsLeavesNothingOpen) {
  const testing::TemporaryDirectory directory;
  std::filesystem::create_directory(directory.File("folder"));
  const int before = OpenDescriptors();
  // As on a full disk: no file may have a byte.
  struct rlimit limit {};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &limit), 0);
  const struct rlimit none = {0, limit.rlim_max};
  const auto handler = signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &none), 0);
  const std::string text = "text";
  const Status full = WriteFileAtomically(directory.File("file"), std::as_bytes(std::span(text)));
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  signal(SIGXFSZ, handler);
  EXPECT_THAT(MessageOf(full), HasSubstr("cannot write"));
  EXPECT_THAT(MessageOf(WriteFileAtomically(directory.File("folder"), {})),
              HasSubstr("cannot replace"));
  EXPECT_EQ(OpenDescriptors(), before);
  EXPECT_EQ(NamesIn(directory.path()).value(), std::vector<std::string>{"folder"});
}

// Somebody else may have put one into a directory that all may write to.
TEST(File, AnAtomicWriteFollowsNoLink) {
  const testing::TemporaryDirectory directory;
  directory.Write("precious", "untouched");
  const std::string path = directory.File("file");
  std::filesystem::create_symlink(directory.File("precious"),
                                  path + ".tmp." + std::to_string(os::ProcessId()));
  const std::string text = "text";
  ASSERT_TRUE(WriteFileAtomically(path, std::as_bytes(std::span(text))).ok());
  EXPECT_EQ(ReadTextFile(path).value(), "text");
  EXPECT_EQ(ReadTextFile(directory.File("precious")).value(), "untouched");
}

TEST(File, APipeIsRefusedAtOnce) {
  const testing::TemporaryDirectory directory;
  ASSERT_EQ(mkfifo(directory.File("pipe").c_str(), 0600), 0);
  EXPECT_THAT(MessageOf(RandomAccessFile::Open(directory.File("pipe")).status()),
              HasSubstr("not a regular file"));
}

TEST(File, SaysWhichFileCannotBeRead) {
  EXPECT_THAT(MessageOf(ReadTextFile("/nowhere/file").status()),
              HasSubstr("/nowhere/file: cannot open"));
  EXPECT_THAT(MessageOf(RandomAccessFile::Open("/").status()), HasSubstr("not a regular file"));
  const testing::TemporaryDirectory directory;
  directory.Write("short", "abc");
  const auto file = RandomAccessFile::Open(directory.File("short")).value();
  std::vector<std::byte> bytes(10);
  EXPECT_THAT(MessageOf(file->Read(0, bytes)), HasSubstr("ends at byte 3, expected at least 10"));
  EXPECT_FALSE(ReadTextFile(directory.File("short"), 2).ok());
}

TEST(Options, AreCheckedAgainstTheirTable) {
  Options options;
  const auto set = [&](const char* name, const char* text) {
    return SetOption(*FindOption(name), text, std::string("--") + name, &options);
  };
  EXPECT_TRUE(set("ranks", "3").ok());
  EXPECT_EQ(options.ranks, 3);
  EXPECT_THAT(MessageOf(set("ranks", "0")), HasSubstr("--ranks: 0 is outside 1"));
  EXPECT_THAT(MessageOf(set("ranks", "2.5")), HasSubstr("not a whole number"));
  EXPECT_THAT(MessageOf(set("ranks", "")), HasSubstr("not a whole number"));
  EXPECT_THAT(MessageOf(set("collective", "smoke")),
              HasSubstr("'smoke' is not one of tcp, shm, rdma, mpi"));
  EXPECT_TRUE(set("shares", "3,2.5").ok());
  EXPECT_EQ(options.shares, (std::vector<double>{3, 2.5}));
  EXPECT_FALSE(set("shares", "3,,2").ok());
  EXPECT_FALSE(set("shares", "3,nan").ok());
  EXPECT_TRUE(set("temperature", "0.5").ok());
  EXPECT_EQ(options.temperature, 0.5);
  EXPECT_FALSE(set("json", "yes").ok());
  EXPECT_EQ(FindOption("no-such-flag"), nullptr);
  EXPECT_EQ(FindOption("ctx-size"), FindOption("max-model-len"));
  EXPECT_EQ(FindOption("tp"), nullptr);
}

TEST(Options, EveryNameAndAliasIsUnique) {
  std::vector<std::string> names;
  for (const OptionSpec& spec : OptionTable()) {
    names.push_back(std::string("--") + spec.name);
    std::string aliases = spec.alias;
    for (size_t begin = 0; begin < aliases.size();) {
      const size_t comma = std::min(aliases.find(',', begin), aliases.size());
      names.push_back(aliases.substr(begin, comma - begin));
      begin = comma + 1;
    }
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::adjacent_find(names.begin(), names.end()), names.end());
}

TEST(Deadline, PassesAndCounts) {
  EXPECT_FALSE(Deadline().Passed());
  EXPECT_TRUE(Deadline::After(-1).Passed());
  const Deadline later = Deadline::After(60'000);
  EXPECT_FALSE(later.Passed());
  EXPECT_LE(later.RemainingMs(), 60'001);
}

TEST(Version, IsTheReleaseAndADigestOfTheSources) {
  EXPECT_THAT(SourceVersion(), ::testing::MatchesRegex("0\\.1\\.0\\+[0-9a-f]{12}"));
  EXPECT_THAT(BuildDescription(), ::testing::StartsWith(SourceVersion() + " (commit "));
}

}  // namespace
}  // namespace lockstep
