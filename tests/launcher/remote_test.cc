#include "launcher/remote.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "transport/socket.h"

namespace lockstep {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

NodeAnswer Here(const std::string& script, const std::string& input = "") {
  const auto answers = RunOnNodes("ssh", std::vector<NodeCommand>{{"", script, input}}, 20'000);
  EXPECT_TRUE(answers[0].ok()) << answers[0].status();
  return answers[0].ok() ? *answers[0] : NodeAnswer{};
}

TEST(Remote, AWordReachesAShellAsItIs) {
  for (const std::string text : {"plain", "", "a b  c", "it's", "'",
                                 "$HOME `id` $(id) \\ \" * ? ; & | > # ~ !", "\n\t", "-n"})
    EXPECT_EQ(Here("printf %s " + ShellWord(text)).out, text);
  // Also through the two shells that ssh makes of it.
  const std::string twice = "exec /bin/sh -c " + ShellWord("printf %s " + ShellWord("it's $HOME"));
  EXPECT_EQ(Here(twice).out, "it's $HOME");
}

TEST(Remote, SshIsToldToAskNothingAndToGiveUp) {
  const auto words = CommandLineOf("ssh  -p 2222", {"spark-2", "echo it's", ""});
  ASSERT_TRUE(words.ok()) << words.status();
  EXPECT_THAT(*words,
              ElementsAre("ssh", "-p", "2222", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10",
                          "spark-2", "exec /bin/sh -c 'echo it'\\''s'"));
}

TEST(Remote, WhatIsNoHostNeverReachesSsh) {
  for (const std::string host : {"-oProxyCommand=x", "a b", "a;b", "$(id)", "a@b", "a\nb", "'a'"}) {
    const auto words = CommandLineOf("ssh", {host, "true", ""});
    ASSERT_FALSE(words.ok()) << host;
    EXPECT_EQ(ExitCode(words.status()), 2);
    EXPECT_THAT(MessageOf(words.status()), HasSubstr("no host"));
  }
  for (const std::string host : {"spark-1", "10.0.0.1", "fe80::1%eth0", "::1", "a_b.local"})
    EXPECT_TRUE(CommandLineOf("ssh", {host, "true", ""}).ok()) << host;
  EXPECT_FALSE(CommandLineOf("  ", {"a", "true", ""}).ok());
}

TEST(Remote, OutputErrorsExitCodeAndInputOfEachAreKept) {
  const NodeAnswer answer = Here("cat; echo bad >&2; exit 3", "what was given");
  EXPECT_EQ(answer.exit_code, 3);
  EXPECT_EQ(answer.out, "what was given");
  EXPECT_EQ(answer.error, "bad\n");
  const std::string much(3'000'000, 'x');
  EXPECT_EQ(Here("wc -c", much).out, "3000000\n");
  EXPECT_EQ(Here("cat", much).out.size(), kLongestNodeAnswer);
}

TEST(Remote, AllRunAtTheSameTimeAndTheirAnswersKeepTheirOrder) {
  // Each waits for the other's word: one after the other would never end.
  const std::string folder = testing::TempDir() + "/remote_test";
  const std::string prepare = "mkdir -p " + ShellWord(folder) + "; cd " + ShellWord(folder) + "; ";
  const auto meet = [&](const std::string& own, const std::string& other) {
    return NodeCommand{"",
                       prepare + "touch " + own + "; while [ ! -e " + other +
                           " ]; do sleep 0.02; done; printf " + own,
                       ""};
  };
  const auto answers =
      RunOnNodes("ssh", std::vector<NodeCommand>{meet("a", "b"), meet("b", "a")}, 20'000);
  ASSERT_TRUE(answers[0].ok() && answers[1].ok());
  EXPECT_EQ(answers[0]->out, "a");
  EXPECT_EQ(answers[1]->out, "b");
}

TEST(Remote, WhatDoesNotAnswerIsEndedWithItsChildrenAndTheOthersCount) {
  // Every process of the first command holds the other end; nobody has it when all are gone.
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  const UniqueFd gone(ends[0]);
  UniqueFd held(ends[1]);
  const auto answers = RunOnNodes(
      "ssh", std::vector<NodeCommand>{{"", "sleep 600 & sleep 600", ""}, {"", "echo here", ""}},
      5'000);
  EXPECT_THAT(MessageOf(answers[0].status()), HasSubstr("no answer within 5 s"));
  ASSERT_TRUE(answers[1].ok());
  EXPECT_EQ(answers[1]->out, "here\n");
  held.Reset();
  pollfd entry = {gone.get(), POLLIN, 0};
  EXPECT_EQ(poll(&entry, 1, 20'000), 1);
  EXPECT_NE(entry.revents & POLLHUP, 0);
}

TEST(Remote, AProcessInTheBackgroundIsNotWaitedFor) {
  const std::string said = Here("sleep 600 & echo $!").out;
  const int pid = std::atoi(said.c_str());
  ASSERT_GT(pid, 1) << said;
  EXPECT_EQ(kill(pid, SIGKILL), 0);  // it runs still
}

TEST(Remote, AnSshThatIsNotThereSaysSo) {
  const auto answers =
      RunOnNodes("/nowhere/ssh", std::vector<NodeCommand>{{"spark-2", "true", ""}}, 20'000);
  ASSERT_TRUE(answers[0].ok());
  EXPECT_EQ(answers[0]->exit_code, 255);
  EXPECT_THAT(answers[0]->error, HasSubstr("/nowhere/ssh cannot be run"));
}

}  // namespace
}  // namespace lockstep
