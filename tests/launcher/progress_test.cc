#include "launcher/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

namespace lockstep {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::StartsWith;

constexpr int64_t kMs = 1'000'000;

struct Recorder {
  std::vector<std::string> written;
  std::function<void(const std::string&)> Writer() {
    return [this](const std::string& text) { written.push_back(text); };
  }
};

TEST(Progress, OnATerminalOneLineIsRedrawnAndEndedOnce) {
  Recorder recorder;
  ProgressReport progress("loading", {.terminal = true}, recorder.Writer());
  for (int64_t i = 0; i <= 1000; ++i) progress.Update(i << 20, 1000 << 20, i * kMs);
  progress.Finish();
  progress.Finish();
  EXPECT_LT(recorder.written.size(), 20u);
  EXPECT_THAT(recorder.written.front(), StartsWith("\rloading ["));
  EXPECT_THAT(recorder.written[recorder.written.size() - 2],
              AllOf(HasSubstr("100 %"), HasSubstr("1.0 GiB/s")));
  EXPECT_EQ(recorder.written.back(), "\n");
}

TEST(Progress, ElsewherePlainLinesComeEveryTenthOrTwoSeconds) {
  Recorder recorder;
  ProgressReport progress("loading", {}, recorder.Writer());
  for (int64_t i = 0; i <= 100; ++i) progress.Update(i, 100, i * 100 * kMs);  // 10 s in all
  EXPECT_THAT(recorder.written, SizeIs(10));
  for (const std::string& line : recorder.written) EXPECT_EQ(line.find('\r'), std::string::npos);
  EXPECT_THAT(recorder.written.back(), AllOf(HasSubstr("100 %"), HasSubstr("100 B of 100 B")));

  Recorder slow;
  ProgressReport slowly("loading", {}, slow.Writer());
  for (int64_t i = 0; i <= 100; ++i) slowly.Update(i, 10'000, i * 100 * kMs);  // 1 % in 10 s
  EXPECT_THAT(slow.written, SizeIs(5));
}

TEST(Progress, AQuickLoadSaysNothing) {
  Recorder recorder;
  ProgressReport progress("loading", {}, recorder.Writer());
  for (int64_t i = 0; i <= 100; ++i) progress.Update(i, 100, i * kMs);
  progress.Finish();
  EXPECT_THAT(recorder.written, IsEmpty());
}

TEST(Progress, TheTimeLeftFollowsTheRate) {
  Recorder recorder;
  ProgressReport progress("rank 1: loading", {}, recorder.Writer());
  progress.Update(0, uint64_t{100} << 30, 0);
  progress.Update(uint64_t{50} << 30, uint64_t{100} << 30, 5'000 * kMs);
  ASSERT_THAT(recorder.written, SizeIs(1));
  EXPECT_THAT(recorder.written[0],
              AllOf(StartsWith("rank 1: loading: 50 %"), HasSubstr("50 GiB of 100 GiB"),
                    HasSubstr("10 GiB/s"), HasSubstr("5 s left")));
}

TEST(Progress, NothingToLoadIsNoDivisionByZero) {
  Recorder recorder;
  ProgressReport progress("loading", {.terminal = true}, recorder.Writer());
  progress.Update(0, 0, 0);
  progress.Finish();
  EXPECT_THAT(recorder.written, IsEmpty());
}

TEST(Progress, BytesAreShownInReadableUnits) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1536), "1.5 KiB");
  EXPECT_EQ(FormatBytes(uint64_t{350} << 20), "350 MiB");
  EXPECT_EQ(FormatBytes(uint64_t{1200} << 30), "1.2 TiB");
}

}  // namespace
}  // namespace lockstep
