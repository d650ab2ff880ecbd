#include "launcher/node_process.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/temporary.h"
#include "transport/socket.h"

namespace {
int lock_error = 0;  // what the next call of flock fails with
bool lock_error_stays = false;
}  // namespace

// In place of the C library's, for tests of file systems without locks.
extern "C" int flock(int file, int how) noexcept {
  if (lock_error == 0) return static_cast<int>(syscall(SYS_flock, file, how));
  errno = lock_error;
  if (!lock_error_stays) lock_error = 0;
  return -1;
}

namespace lockstep {
namespace {

using ::testing::HasSubstr;

class NodeProcess : public ::testing::Test {
 protected:
  // Here, unlike for `lockstep up`, the ranks are children of the process that asks.
  void TearDown() override {
    for (const auto pid : started_) {
      (void)kill(-pid, SIGKILL);
      (void)waitpid(pid, nullptr, WNOHANG);
    }
  }

  RankProcess Start(const std::string& script) {
    const StatusOr<RankProcess> process = StartRank(directory_, 3, {"/bin/sh", "-c", script});
    EXPECT_TRUE(process.ok()) << process.status();
    if (process.ok()) started_.push_back(static_cast<pid_t>(process->pid));
    return process.ok() ? *process : RankProcess{};
  }
  RankProcess Find() { return *FindRank(directory_, 3); }
  // A process that is no rank, and whether it still ran when this ended it.
  static pid_t StartOther() {
    const pid_t other = fork();
    if (other == 0) {
      (void)execl("/bin/sleep", "sleep", "600", nullptr);
      _exit(127);
    }
    return other;
  }
  static bool EndOther(pid_t other) {
    if (waitpid(other, nullptr, WNOHANG) != 0) return false;
    (void)kill(other, SIGKILL);
    int how = 0;
    // Another signal may have been on its way.
    return waitpid(other, &how, 0) == other && WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL;
  }
  template <typename Condition>
  static bool Eventually(const Condition& condition) {
    for (int i = 0; i < 1000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return false;
  }

  std::vector<pid_t> started_;
  testing::TemporaryDirectory temporary_;
  const std::string directory_ = temporary_.path();
};

TEST_F(NodeProcess, NobodyWasEverStarted) {
  EXPECT_FALSE(Find().running);
  EXPECT_EQ(Find().pid, 0);
  EXPECT_EQ(*EndRank(directory_, 3, 1000), RankEnd::kWasNotRunning);
}

TEST_F(NodeProcess, ARankRunsInTheBackgroundUntilItIsEnded) {
  const RankProcess started = Start("echo out; echo error >&2; cat; exec sleep 600");
  EXPECT_TRUE(started.running);
  const RankProcess found = Find();
  EXPECT_TRUE(found.running);
  EXPECT_EQ(found.pid, started.pid);
  EXPECT_EQ(found.started_at, started.started_at);
  EXPECT_FALSE(found.ready);
  EXPECT_EQ(getsid(static_cast<pid_t>(found.pid)), found.pid);  // no terminal ends it
  EXPECT_TRUE(Eventually([&] { return LastWordsOfRank(directory_, 3) == "out\nerror"; }));
  EXPECT_EQ(*EndRank(directory_, 3, 20'000), RankEnd::kEnded);
  int how = 0;
  ASSERT_EQ(waitpid(static_cast<pid_t>(found.pid), &how, 0), found.pid);
  EXPECT_TRUE(WIFSIGNALED(how) && WTERMSIG(how) == SIGTERM);
  EXPECT_FALSE(Find().running);
  EXPECT_EQ(Find().pid, found.pid);
}

TEST_F(NodeProcess, ASecondOneIsRefusedAndTheFirstLeftAlone) {
  const RankProcess first = Start("exec sleep 600");
  const StatusOr<RankProcess> second = StartRank(directory_, 3, {"/bin/sh", "-c", "true"});
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(MessageOf(second.status()),
              HasSubstr("runs already there, as process " + std::to_string(first.pid)));
  EXPECT_TRUE(Find().running);
  EXPECT_EQ(Find().pid, first.pid);
}

TEST_F(NodeProcess, WhatDoesNotHeedATermIsKilled) {
  const RankProcess process = Start("trap '' TERM; echo deaf; while :; do sleep 0.05; done");
  ASSERT_TRUE(Eventually([&] { return LastWordsOfRank(directory_, 3) == "deaf"; }));
  EXPECT_EQ(*EndRank(directory_, 3, 200), RankEnd::kKilled);
  int how = 0;
  ASSERT_EQ(waitpid(static_cast<pid_t>(process.pid), &how, 0), process.pid);
  EXPECT_TRUE(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
}

TEST_F(NodeProcess, AnotherProcessWithTheNumberOfADeadOneIsNotTouched) {
  const pid_t other = StartOther();
  std::ofstream(directory_ + "/rank-3.pid") << other << " 1700000000\n";
  EXPECT_FALSE(Find().running);
  EXPECT_EQ(*EndRank(directory_, 3, 1000), RankEnd::kWasNotRunning);
  EXPECT_TRUE(EndOther(other));
}

// Between the lock and the process: the log is a pipe that nobody reads, so opening it waits.
TEST_F(NodeProcess, WhileARankIsBeingStartedTheNumberOfTheOneBeforeIsNotTouched) {
  const pid_t other = StartOther();
  const std::string pid_file = directory_ + "/rank-3.pid", log = directory_ + "/rank-3.log";
  std::ofstream(pid_file) << other << " 1700000000\n";
  ASSERT_EQ(mkfifo(log.c_str(), 0600), 0);
  std::filesystem::create_directory(log + ".1");  // so that the log cannot be moved away
  std::thread starts([&] { (void)Start("exec sleep 600"); });
  EXPECT_TRUE(Eventually([&] { return std::filesystem::file_size(pid_file) == 0; }));
  const StatusOr<RankEnd> early = EndRank(directory_, 3, 1000);
  EXPECT_THAT(MessageOf(early.status()), HasSubstr("names no process yet"));
  const UniqueFd reader(open(log.c_str(), O_RDONLY | O_CLOEXEC));
  starts.join();
  const StatusOr<RankEnd> end = EndRank(directory_, 3, 20'000);
  ASSERT_TRUE(end.ok()) << end.status();
  EXPECT_EQ(*end, RankEnd::kEnded);
  EXPECT_TRUE(EndOther(other));
}

TEST_F(NodeProcess, WhereFilesCannotBeLockedNobodyIsTakenForARank) {
  const pid_t other = StartOther();
  std::ofstream(directory_ + "/rank-3.pid") << other << " 1700000000\n";
  lock_error = ENOLCK;
  lock_error_stays = true;
  for (const Status& status :
       {FindRank(directory_, 3).status(), EndRank(directory_, 3, 100).status(),
        StartRank(directory_, 3, {"/bin/sh", "-c", "true"}).status()}) {
    EXPECT_EQ(ExitCode(status), 2);
    EXPECT_THAT(MessageOf(status), HasSubstr(directory_ + "/rank-3.pid cannot be locked"));
    EXPECT_THAT(MessageOf(status), HasSubstr("--node-directory"));
  }
  lock_error = EINTR;
  lock_error_stays = false;
  EXPECT_FALSE(Find().running);
  EXPECT_EQ(lock_error, 0);
  EXPECT_TRUE(EndOther(other));
}

TEST_F(NodeProcess, WhatIsPreparedIsSoOnlyWhereTheRankDoesNotRun) {
  int prepared = 0;
  const auto refuse = [&] {
    ++prepared;
    return UsageError("not now");
  };
  const StatusOr<RankProcess> refused = StartRank(directory_, 3, {"/bin/sh", "-c", "true"}, refuse);
  EXPECT_THAT(MessageOf(refused.status()), HasSubstr("not now"));
  EXPECT_FALSE(Find().running);
  (void)Start("exec sleep 600");
  EXPECT_FALSE(StartRank(directory_, 3, {"/bin/sh", "-c", "true"}, refuse).ok());
  EXPECT_EQ(prepared, 1);
}

TEST_F(NodeProcess, APidFileThatSaysNonsenseEndsNobody) {
  for (const std::string text : {"", "x", "-1 5", "0 5", "1 5", "99999999999999999999 5"}) {
    std::ofstream(directory_ + "/rank-3.pid") << text;
    EXPECT_EQ(Find().pid, 0) << text;
    EXPECT_EQ(*EndRank(directory_, 3, 100), RankEnd::kWasNotRunning) << text;
  }
}

TEST_F(NodeProcess, AProgramThatCannotRunIsAnErrorAtOnce) {
  const StatusOr<RankProcess> process = StartRank(directory_, 3, {"/nowhere/lockstep"});
  ASSERT_FALSE(process.ok());
  EXPECT_THAT(MessageOf(process.status()), HasSubstr("/nowhere/lockstep"));
  EXPECT_TRUE(Eventually([&] { return !Find().running; }));
}

TEST_F(NodeProcess, ItIsReadyWhenItSaidSoOnALineOfItsOwn) {
  (void)Start(
      "echo 'x {\"ready\":true,\"port\":1}'; echo '{\"ready\":true,\"port\":\"a\"}'; "
      "echo '{\"ready\":true,\"port\":70000}'; echo before; exec sleep 600");
  ASSERT_TRUE(Eventually([&] { return LastWordsOfRank(directory_, 3).ends_with("before"); }));
  EXPECT_FALSE(Find().ready);
  (void)EndRank(directory_, 3, 20'000);
  (void)Start("echo before; echo '{\"ready\":true,\"port\":8123,\"model\":\"m\"}'; exec sleep 600");
  ASSERT_TRUE(Eventually([&] { return Find().ready; }));
  EXPECT_EQ(Find().port, 8123);
  // The log of the time before is kept, once.
  EXPECT_TRUE(std::filesystem::exists(directory_ + "/rank-3.log.1"));
}

TEST_F(NodeProcess, OfALongLogTheLastWholeLinesAreTold) {
  std::ofstream log(directory_ + "/rank-3.log");
  for (int i = 0; i < 1000; ++i) log << "line " << i << " of many\n";
  log.close();
  const std::string words = LastWordsOfRank(directory_, 3);
  EXPECT_TRUE(words.starts_with("line ")) << words;
  EXPECT_TRUE(words.ends_with("line 999 of many")) << words;
  EXPECT_LE(words.size(), 1000u);
  EXPECT_EQ(LastWordsOfRank(directory_ + "/nowhere", 3), "");
}

// A server that says one thing to whoever connects.
std::string HealthOf(const std::string& answer) {
  StatusOr<UniqueFd> listener = ListenTcp({"127.0.0.1", 0});
  const int port = LocalEndpoint(listener->get()).port;
  std::thread server([&] {
    (void)WaitForSocket(listener->get(), true, false, 10'000'000);
    const UniqueFd socket = AcceptPending(listener->get());
    char question[12];
    (void)ReceiveAll(socket.get(), std::as_writable_bytes(std::span(question)),
                     Deadline::After(10'000));
    (void)SendAll(socket.get(), std::as_bytes(std::span(answer)), Deadline::After(10'000));
  });
  const std::string health = AskHealth("127.0.0.1", port);
  server.join();
  return health;
}

TEST(Health, IsWhatTheServerAnswers) {
  EXPECT_EQ(HealthOf("HTTP/1.1 200 OK\r\n\r\n"), "ready");
  EXPECT_EQ(HealthOf("HTTP/1.1 503 Service Unavailable\r\n\r\n"), "not ready");
  EXPECT_EQ(HealthOf("HTTP/1.1 404 Not Found\r\n\r\n"), "answers 404");
  EXPECT_THAT(HealthOf("HTTP"), HasSubstr("closed"));
  int port = 0;
  {
    const StatusOr<UniqueFd> listener = ListenTcp({"127.0.0.1", 0});
    port = LocalEndpoint(listener->get()).port;
  }
  EXPECT_THAT(AskHealth("127.0.0.1", port), HasSubstr("refused"));
}

}  // namespace
}  // namespace lockstep
