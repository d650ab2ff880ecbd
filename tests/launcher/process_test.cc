#include "launcher/process.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>

namespace lockstep {
namespace {

// Runs `body` in a child and returns how it ended.
template <typename Body>
int ExitStatusOf(const Body& body) {
  const pid_t pid = fork();
  if (pid == 0) {
    body();
    _exit(0);
  }
  int status = 0;
  EXPECT_EQ(waitpid(pid, &status, 0), pid);
  return status;
}

TEST(Process, ASignalEndsItWith130WhenNobodyListens) {
  for (const int signal : {SIGINT, SIGTERM}) {
    const int status = ExitStatusOf([signal] {
      InstallSignalHandlers();
      raise(signal);
    });
    EXPECT_TRUE(WIFEXITED(status));
    EXPECT_EQ(WEXITSTATUS(status), 130);
  }
}

TEST(Process, InAScopeTheFirstSignalRunsTheActionAndALaterOneEnds) {
  const int status = ExitStatusOf([] {
    InstallSignalHandlers();
    std::atomic<int> calls{0};
    {
      InterruptScope scope([&] { ++calls; });
      raise(SIGINT);
      for (int i = 0; i < 500 && calls == 0; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      if (!Interrupted() || calls != 1) _exit(1);
      std::this_thread::sleep_for(std::chrono::milliseconds(kTwinSignalMs + 50));
      raise(SIGINT);
      _exit(2);
    }
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 130);
}

// As GNU timeout does, which signals a process and its group.
TEST(Process, SignalsThatComeTogetherAreOne) {
  const int status = ExitStatusOf([] {
    InstallSignalHandlers();
    std::atomic<int> calls{0};
    const InterruptScope scope([&] { ++calls; });
    for (const int signal : {SIGTERM, SIGTERM, SIGINT}) raise(signal);
    for (int i = 0; i < 500 && calls == 0; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    _exit(Interrupted() && calls == 1 ? 3 : 1);
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 3);
}

TEST(Process, ABrokenPipeIsAnErrorOfTheWriteAndNotTheEnd) {
  const int status = ExitStatusOf([] {
    InstallSignalHandlers();
    int ends[2];
    if (pipe(ends) != 0) _exit(1);
    close(ends[0]);
    if (write(ends[1], "x", 1) != -1) _exit(2);
  });
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

TEST(Process, TheExecutableIsThisOne) {
  EXPECT_NE(ExecutablePath().find("process_test"), std::string::npos);
}

}  // namespace
}  // namespace lockstep
