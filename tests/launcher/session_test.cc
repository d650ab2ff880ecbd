// Worlds as users start them: spawned, under mpirun, by hand; how they end well and how they end
// badly.
#include "launcher/session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <new>

#include "nlohmann/json.hpp"
#include "tests/launcher/program.h"

namespace lockstep {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;
using testing::StartsWith;

const std::string kModel = SourceFile("models/tiny");

// After which a program waits for the other ranks.
constexpr std::chrono::milliseconds kUnderWay(kSanitized ? 3000 : 300);

std::vector<std::string> ShortRun(std::vector<std::string> more) {
  std::vector<std::string> arguments = {
      "run",          "--model", kModel,         "--raw",           "--json", "--temperature", "0",
      "--max-tokens", "8",       "--ignore-eos", "--max-model-len", "512",    "Say hello"};
  arguments.insert(arguments.begin() + 1, more.begin(), more.end());
  return arguments;
}

// A generation that lasts until something ends it.
std::vector<std::string> LongRun(std::vector<std::string> more) {
  std::vector<std::string> arguments = {"run",          "--model",       kModel,  "--raw",
                                        "--ignore-eos", "--max-tokens",  "16000", "--max-model-len",
                                        "16384",        "--temperature", "1",     "Say hello"};
  arguments.insert(arguments.begin() + 1, more.begin(), more.end());
  return arguments;
}

std::string FreePort() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  EXPECT_EQ(bind(fd, reinterpret_cast<sockaddr*>(&address), length), 0);
  EXPECT_EQ(getsockname(fd, reinterpret_cast<sockaddr*>(&address), &length), 0);
  close(fd);
  return std::to_string(ntohs(address.sin_port));
}

std::string TextOf(Program& program) {
  EXPECT_EQ(program.Wait(), 0) << program.error();
  const nlohmann::json json = nlohmann::json::parse(program.out(), nullptr, false);
  EXPECT_TRUE(json.is_object()) << program.out();
  return json.is_object() ? json["text"].get<std::string>() : "";
}

TEST(Session, EveryWayToStartRanksGivesTheSameAnswer) {
  Program alone(ShortRun({}));
  const std::string text = TextOf(alone);
  EXPECT_FALSE(text.empty());
  for (const std::vector<std::string>& way : std::vector<std::vector<std::string>>{
           {"--ranks", "2"},
           {"--ranks", "3", "--collective", "shm", "--shares", "3,2,1"},
           {"--config", SourceFile("configs/local-2.yaml")},
           {"--config", SourceFile("configs/local-4.yaml"), "--collective", "tcp"},
           {"--ranks", "2", "--collective", "mpi"}}) {
    Program program(ShortRun(way));
    EXPECT_EQ(TextOf(program), text) << program.error();
    EXPECT_EQ(std::count(program.out().begin(), program.out().end(), '\n'), 1)
        << "only rank 0 prints";
  }
}

TEST(Session, ANarrowWireGivesTheSameAnswerOverEveryTransportAndSaysWhatItDoes) {
  for (const std::string wire : {"bf16", "int8"}) {
    std::vector<std::string> texts;
    for (const std::string collective : {"tcp", "shm", "mpi"}) {
      Program program(ShortRun(
          {"--ranks", "3", "--wire", wire, "--collective", collective, "--log-level", "info"}));
      texts.push_back(TextOf(program));
      EXPECT_THAT(program.error(), HasSubstr("sums travel as " + wire + ": the probe prompts' "));
      EXPECT_THAT(program.error(), Not(HasSubstr("move by 0 of"))) << "nothing was rounded";
    }
    EXPECT_FALSE(texts[0].empty());
    EXPECT_THAT(texts, Each(texts[0]));
  }
}

TEST(Session, SumsInAnyOrderGiveAnAnswerOverEveryTransport) {
  Program alone(ShortRun({}));
  const std::string text = TextOf(alone);
  for (const std::string collective : {"tcp", "shm", "mpi"}) {
    Program program(ShortRun(
        {"--ranks", "3", "--sum-order", "any", "--collective", collective, "--log-level", "info"}));
    EXPECT_EQ(TextOf(program), text) << collective << ": " << program.error();
    EXPECT_EQ(program.error().find("adds as it likes") != std::string::npos, collective == "mpi");
  }
}

TEST(Session, ANarrowWireAndSumsInAnyOrderExcludeEachOther) {
  Program program(ShortRun({"--ranks", "2", "--sum-order", "any", "--wire", "bf16"}));
  EXPECT_EQ(program.Wait(), 2);
  EXPECT_THAT(program.ErrorLines(), ElementsAre(HasSubstr("--sum-order any")));
}

TEST(Session, UnderMpirunTheSameCommandJoinsByItself) {
  std::vector<std::string> arguments = {"--allow-run-as-root", "--oversubscribe", "-n", "2",
                                        BinaryPath()};
  for (const std::string& argument : ShortRun({})) arguments.push_back(argument);
  Program program("mpirun", arguments);
  Program alone(ShortRun({}));
  EXPECT_EQ(TextOf(program), TextOf(alone));
}

TEST(Session, RanksStartedByHandFindEachOther) {
  const std::string port = FreePort();
  Program worker({"worker", "--model", kModel, "--ranks", "2", "--rank", "1", "--rendezvous",
                  "127.0.0.1:" + port, "--max-model-len", "512"});
  Program zero(ShortRun({"--ranks", "2", "--rank", "0", "--rendezvous", "127.0.0.1:" + port}));
  Program alone(ShortRun({}));
  EXPECT_EQ(TextOf(zero), TextOf(alone));
  EXPECT_EQ(worker.Wait(), 0) << worker.error();
  EXPECT_THAT(worker.out(), IsEmpty());
}

TEST(Session, AMissingModelIsOneSentenceAndExitCode3) {
  Program program({"run", "--model", "/nowhere", "--ranks", "3", "hello"});
  EXPECT_EQ(program.Wait(), 3);
  EXPECT_THAT(program.ErrorLines(), ElementsAre(HasSubstr("/nowhere")));
  EXPECT_THAT(program.out(), IsEmpty());
}

TEST(Session, AModelMissingOnOneRankEndsAllAndNamesIt) {
  const std::string port = FreePort();
  Program one({"worker", "--model", "/nowhere", "--ranks", "2", "--rank", "1", "--rendezvous",
               "127.0.0.1:" + port});
  Program zero({"run", "--model", kModel, "--ranks", "2", "--rank", "0", "--rendezvous",
                "127.0.0.1:" + port, "hi"});
  EXPECT_EQ(zero.Wait(), 3) << zero.error();
  EXPECT_EQ(one.Wait(), 3) << one.error();
  EXPECT_THAT(zero.ErrorLines(), ElementsAre(AllOf(StartsWith("rank 1 ("), HasSubstr("/nowhere"))));
}

// A copy of the tiny checkpoint to damage.
std::string CopyOfModel(const std::string& name) {
  const std::string copy = testing::TempDir() + "/session_test_" + name;
  std::filesystem::remove_all(copy);
  std::filesystem::copy(kModel, copy, std::filesystem::copy_options::recursive);
  return copy;
}

TEST(Session, TwoDifferentModelsAreRefusedWithBothDigests) {
  const std::string other = CopyOfModel("other");
  std::fstream config(other + "/config.json");
  std::stringstream text;
  text << config.rdbuf();
  std::string changed = text.str();
  const size_t at = changed.find("\"routed_scaling_factor\": 2.5");
  ASSERT_NE(at, std::string::npos);
  changed.replace(at, 28, "\"routed_scaling_factor\": 1.5");
  std::ofstream(other + "/config.json") << changed;

  const std::string port = FreePort();
  Program one({"worker", "--model", other, "--ranks", "2", "--rank", "1", "--rendezvous",
               "127.0.0.1:" + port});
  Program zero({"run", "--model", kModel, "--ranks", "2", "--rank", "0", "--rendezvous",
                "127.0.0.1:" + port, "hi"});
  EXPECT_EQ(zero.Wait(), 2) << zero.error();
  EXPECT_EQ(one.Wait(), 2) << one.error();
  EXPECT_THAT(zero.ErrorLines(), ElementsAre(AllOf(HasSubstr("model digest"), HasSubstr("rank 0 ("),
                                                   HasSubstr("rank 1 ("))));
}

TEST(Session, DifferentSettingsAreRefusedWithBothValues) {
  const std::string port = FreePort();
  Program one({"worker", "--model", kModel, "--ranks", "2", "--rank", "1", "--rendezvous",
               "127.0.0.1:" + port, "--prefill-chunk", "128"});
  Program zero({"run", "--model", kModel, "--ranks", "2", "--rank", "0", "--rendezvous",
                "127.0.0.1:" + port, "hi"});
  EXPECT_EQ(zero.Wait(), 2) << zero.error();
  EXPECT_EQ(one.Wait(), 2) << one.error();
  EXPECT_THAT(zero.ErrorLines(),
              ElementsAre(AllOf(HasSubstr("prefill-chunk"), HasSubstr("256"), HasSubstr("128"))));
}

TEST(Session, ATruncatedShardEndsAllRanksWithExitCode3) {
  const std::string broken = CopyOfModel("broken");
  std::filesystem::resize_file(broken + "/model-00002-of-00002.safetensors", 100'000);
  Program program({"run", "--model", broken, "--ranks", "2", "hello"});
  EXPECT_EQ(program.Wait(), 3) << program.error();
  EXPECT_THAT(program.ErrorLines(), ElementsAre(HasSubstr("model-00002-of-00002.safetensors")));
}

TEST(Session, AKilledRankEndsTheOthersWithinFiveSecondsAndIsNamed) {
  for (const std::string collective : {"tcp", "shm"}) {
    Program program(LongRun({"--ranks", "3", "--collective", collective}));
    ASSERT_TRUE(program.WaitForError("loaded")) << program.error();
    std::this_thread::sleep_for(kUnderWay);
    const std::vector<pid_t> children = program.Children();
    ASSERT_EQ(children.size(), 2u);
    const auto start = std::chrono::steady_clock::now();
    ASSERT_EQ(kill(children[1], SIGKILL), 0);
    EXPECT_EQ(program.Wait(10), 4) << program.error();
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    EXPECT_LT(took.count(), 5);
    EXPECT_THAT(program.ErrorLines(),
                ElementsAre(AllOf(HasSubstr("rank 2 ("), HasSubstr(std::to_string(children[1])))));
    EXPECT_TRUE(HasEnded(children[0]));
  }
}

TEST(Session, CtrlCEndsAllRanksInOrder) {
  Program program(LongRun({"--ranks", "2"}));
  ASSERT_TRUE(program.WaitForError("loaded")) << program.error();
  std::this_thread::sleep_for(kUnderWay);
  const std::vector<pid_t> children = program.Children();
  ASSERT_EQ(children.size(), 1u);
  ASSERT_EQ(kill(program.pid(), SIGINT), 0);
  EXPECT_EQ(program.Wait(10), 130) << program.error();
  EXPECT_THAT(program.ErrorLines(), ElementsAre("interrupted"));
  EXPECT_TRUE(HasEnded(children[0]));
}

TEST(Session, CtrlCWhileRanksAreMissingEndsAtOnce) {
  Program program({"run", "--model", kModel, "--ranks", "2", "--rank", "0", "--rendezvous",
                   "127.0.0.1:" + FreePort(), "hello"});
  std::this_thread::sleep_for(kUnderWay);
  ASSERT_EQ(kill(program.pid(), SIGINT), 0);
  EXPECT_EQ(program.Wait(5), 130) << program.error();
}

TEST(Session, SpawnedRanksDieWithTheirParent) {
  Program program(LongRun({"--ranks", "2"}));
  ASSERT_TRUE(program.WaitForError("loaded")) << program.error();
  const std::vector<pid_t> children = program.Children();
  ASSERT_EQ(children.size(), 1u);
  ASSERT_EQ(kill(program.pid(), SIGKILL), 0);
  EXPECT_EQ(program.Wait(10), -SIGKILL);
  EXPECT_TRUE(HasEnded(children[0]));
}

TEST(Session, AForeignTicketIsRefused) {
  Program program("/bin/sh",
                  {"-c", "LOCKSTEP_SPAWN_FD=0 exec \"$0\" run --model x hello", BinaryPath()});
  EXPECT_EQ(program.Wait(), 2);
  EXPECT_THAT(program.ErrorLines(), ElementsAre(HasSubstr("LOCKSTEP_SPAWN_FD")));
}

TEST(Session, TheSecretIsNeitherInArgumentsNorInTheEnvironment) {
  const std::string secret = testing::TempDir() + "/session_test.secret";
  std::ofstream(secret) << "correct-horse-battery-staple-0123456789";
  ASSERT_EQ(chmod(secret.c_str(), 0600), 0);
  Program program(LongRun({"--ranks", "2", "--secret-file", secret}));
  ASSERT_TRUE(program.WaitForError("loaded")) << program.error();
  const std::vector<pid_t> children = program.Children();
  ASSERT_EQ(children.size(), 1u);
  for (const char* file : {"cmdline", "environ"}) {
    std::ifstream stream("/proc/" + std::to_string(children[0]) + "/" + file);
    std::stringstream text;
    text << stream.rdbuf();
    EXPECT_EQ(text.str().find("correct-horse"), std::string::npos) << file;
  }
  kill(program.pid(), SIGINT);
  EXPECT_EQ(program.Wait(10), 130);
}

TEST(Session, AReadableSecretFileIsRefused) {
  const std::string secret = testing::TempDir() + "/session_test.open";
  std::ofstream(secret) << "correct-horse-battery-staple-0123456789";
  ASSERT_EQ(chmod(secret.c_str(), 0644), 0);
  Program program(ShortRun({"--ranks", "2", "--secret-file", secret}));
  EXPECT_EQ(program.Wait(), 2);
  EXPECT_THAT(program.ErrorLines(), ElementsAre(HasSubstr(secret)));
}

TEST(Session, WrongFlagsCostNoSpawn) {
  Program program({"run", "--model", kModel, "--ranks", "2", "--kernels", "gpu", "hello"});
  EXPECT_EQ(program.Wait(), 2);
  EXPECT_THAT(program.ErrorLines(),
              ElementsAre(AllOf(HasSubstr("--kernels"), HasSubstr("auto, ref, cpu"))));
  EXPECT_LT(program.seconds(), 2);
}

// Threads with stacks larger than memory can be: the system starts none.
TEST(Session, ASystemThatStartsNoThreadIsAnErrorWithARemedy) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "nor does a program with the thread sanitizer start with such stacks";
#endif
  for (const char* ranks : {"1", "2"}) {
    std::vector<std::string> arguments = {"-c", "ulimit -s 4611686018427387 && exec \"$@\"", "sh",
                                          BinaryPath()};
    for (const std::string& word : ShortRun({"--ranks", ranks})) arguments.push_back(word);
    Program program("/bin/sh", arguments);
    EXPECT_EQ(program.Wait(), 2) << program.error();
    EXPECT_THAT(program.error(), AllOf(HasSubstr("cannot start a thread"), HasSubstr("ulimit -u")));
  }
}

// main() turns the exception into its error; what the others must hear comes before.
TEST(Session, ARankThatRunsOutOfMemoryTellsTheOthers) {
  Options options;
  options.model = kModel;
  options.ranks = 2;
  options.rank = 1;
  options.max_model_len = 512;  // as ShortRun
  options.rendezvous = "127.0.0.1:" + FreePort();
  SessionNeeds needs;
  needs.limits = [](const ModelConfig&) -> StatusOr<ModelLimits> { throw std::bad_alloc(); };
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    try {
      (void)OpenSession(options, needs);
    } catch (const std::bad_alloc&) {
      _exit(7);
    }
    _exit(0);
  }
  Program zero(ShortRun({"--ranks", "2", "--rank", "0", "--rendezvous", options.rendezvous}));
  EXPECT_EQ(zero.Wait(), 2) << zero.error();
  EXPECT_THAT(zero.ErrorLines(),
              ElementsAre(AllOf(StartsWith("rank 1 ("), HasSubstr("ran out of memory"))));
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

}  // namespace
}  // namespace lockstep
