// run, chat, serve and logits as a user starts them, on models/tiny.
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>

#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/file.h"
#include "tests/launcher/program.h"

namespace lockstep {
namespace {

using Json = nlohmann::json;

std::vector<std::string> Arguments(const std::string& command, std::vector<std::string> more) {
  std::vector<std::string> arguments = {command, "--model", SourceFile("models/tiny"),
                                        "--log-level", "warning"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::string TemporaryFile(const std::string& name) {
  return ::testing::TempDir() + name + std::to_string(getpid());
}

Json RunJson(std::vector<std::string> more) {
  more.insert(more.end(), {"--json"});
  Program run(Arguments("run", std::move(more)));
  EXPECT_EQ(run.Wait(), 0) << run.error();
  return Json::parse(run.out(), nullptr, false);
}

TEST(RunCommand, JsonHasTheContractsKeysAndEqualDigests) {
  const Json json =
      RunJson({"--ranks", "2", "--temperature", "0", "--max-tokens", "20", "What is 3 plus 4?"});
  for (const char* key :
       {"text", "reasoning", "ids", "finish_reason", "usage", "timings", "digests"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  ASSERT_EQ(json["digests"].size(), 2u);
  EXPECT_EQ(json["digests"][0], json["digests"][1]);
  EXPECT_EQ(json["ids"].size(), json["usage"]["completion_tokens"]);
}

TEST(RunCommand, SampledTokensDoNotDependOnTheNumberOfRanks) {
  Json first;
  for (const char* ranks : {"1", "2", "3"}) {
    const Json json =
        RunJson({"--ranks", ranks, "--raw", "--seed", "11", "--temperature", "1", "--top-p", "0.9",
                 "--ignore-eos", "--max-tokens", "30", "Once upon a time"});
    if (first.is_null()) first = json["ids"];
    EXPECT_EQ(json["ids"], first) << ranks << " ranks";
  }
  EXPECT_EQ(first.size(), 30u);
}

TEST(RunCommand, ThePromptsFaultsAreUsageErrors) {
  Program empty(Arguments("run", {""}));
  EXPECT_EQ(empty.Wait(), 2) << empty.error();
  Program none(Arguments("run", {}));
  EXPECT_EQ(none.Wait(), 2) << none.error();
  Program longer(Arguments(
      "run", {"--ranks", "2", "--max-model-len", "8", "much too long for eight tokens, this is"}));
  EXPECT_EQ(longer.Wait(), 2) << longer.error();
  EXPECT_NE(longer.error().find("context"), std::string::npos) << longer.error();
}

std::vector<std::string> EndlessRun() {
  return Arguments("run", {"--ranks", "2", "--raw", "--ignore-eos", "--max-tokens", "32000",
                           "Once upon a time"});
}

TEST(RunCommand, CtrlCEndsAllRanksWith130) {
  Program run(EndlessRun());
  std::this_thread::sleep_for(std::chrono::milliseconds(1'500));
  const std::vector<pid_t> children = run.Children();
  ASSERT_EQ(children.size(), 1u);
  kill(run.pid(), SIGINT);
  EXPECT_EQ(run.Wait(10), 130) << run.error();
  for (const pid_t child : children) EXPECT_TRUE(HasEnded(child));
}

TEST(RunCommand, AKilledRankIsNamedWithExitCode4) {
  Program run(EndlessRun());
  std::this_thread::sleep_for(std::chrono::milliseconds(1'500));
  const std::vector<pid_t> children = run.Children();
  ASSERT_EQ(children.size(), 1u);
  kill(children[0], SIGKILL);
  EXPECT_EQ(run.Wait(10), 4) << run.error();
  ASSERT_EQ(run.ErrorLines().size(), 1u) << run.error();
  EXPECT_NE(run.ErrorLines()[0].find("rank 1"), std::string::npos) << run.error();
}

// Starts a server and waits for its line.
struct Server {
  Program program;
  Json ready;
  explicit Server(const std::vector<std::string>& more, const std::string& file)
      : program("/bin/sh", {"-c", Command(more, file)}) {
    for (int i = 0; i < 300 && ready.is_null(); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      std::ifstream in(file);
      std::string line;
      if (std::getline(in, line) && !in.eof()) ready = Json::parse(line, nullptr, false);
    }
  }
  static std::string Command(const std::vector<std::string>& more, const std::string& file) {
    std::string command = std::string("exec ") + std::getenv("LOCKSTEP_BINARY");
    std::vector<std::string> words = Arguments("serve", more);
    words.insert(words.end(), {"--port", "0"});
    for (const std::string& word : words) command += " '" + word + "'";
    return command + " > '" + file + "'";
  }
};

TEST(ServeCommand, PrintsOneReadyLineAndEndsOnSigterm) {
  const std::string file = TemporaryFile("ready");
  Server server({"--ranks", "2", "--grpc-port", "0", "--served-model-name", "mine"}, file);
  ASSERT_TRUE(server.ready.is_object());
  EXPECT_EQ(server.ready["ready"], true);
  EXPECT_GT(server.ready["grpc_port"].get<int>(), 0);
  EXPECT_EQ(server.ready["model"], "mine");
  EXPECT_EQ(server.ready["ranks"], 2);
  const std::string port = std::to_string(server.ready["grpc_port"].get<int>());
  const std::string http_port = std::to_string(server.ready["port"].get<int>());
  for (const auto& [flag, used, other] :
       {std::tuple{"--grpc-port", port, "--port"}, {"--port", http_port, "--grpc-port"}}) {
    Program second(Arguments("serve", {flag, used, other, "0"}));
    EXPECT_EQ(second.Wait(), 2) << second.error();
    EXPECT_NE(second.error().find(used), std::string::npos) << second.error();
    EXPECT_NE(second.error().find(flag), std::string::npos) << second.error();
  }
  kill(server.program.pid(), SIGTERM);
  EXPECT_EQ(server.program.Wait(15), 130) << server.program.error();
  const auto out = ReadTextFile(file);
  ASSERT_TRUE(out.ok());
  EXPECT_EQ(std::count(out->begin(), out->end(), '\n'), 1) << "exactly one line on stdout";
}

TEST(ServeCommand, AnIdleServerNoticesADeadRank) {
  Server server({"--ranks", "3", "--grpc-port", "0"}, TemporaryFile("idle"));
  ASSERT_TRUE(server.ready.is_object());
  const std::vector<pid_t> children = server.program.Children();
  ASSERT_EQ(children.size(), 2u);
  const auto start = std::chrono::steady_clock::now();
  kill(children[1], SIGKILL);
  EXPECT_EQ(server.program.Wait(10), 4) << server.program.error();
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  EXPECT_NE(server.program.error().find("rank "), std::string::npos) << server.program.error();
  EXPECT_TRUE(HasEnded(children[0]));
}

TEST(LogitsCommand, StepsAndBatchesGiveTheSameBits) {
  const std::string tokens = TemporaryFile("tokens"), out = TemporaryFile("logits");
  std::ofstream(tokens) << "[[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20],[5],[7,7,7]]";
  std::string first;
  for (const std::vector<std::string>& how :
       std::vector<std::vector<std::string>>{{},
                                             {"--step", "1"},
                                             {"--step", "7"},
                                             {"--together"},
                                             {"--together", "--step", "3"},
                                             {"--prefill-chunk", "4"}}) {
    std::vector<std::string> more = {"--ranks", "2", "--tokens", tokens, "--out", out};
    more.insert(more.end(), how.begin(), how.end());
    Program logits(Arguments("logits", more));
    ASSERT_EQ(logits.Wait(), 0) << logits.error();
    const auto bytes = ReadTextFile(out);
    ASSERT_TRUE(bytes.ok());
    if (first.empty()) first = *bytes;
    EXPECT_EQ(*bytes, first) << (how.empty() ? "" : how[0]);
  }
  EXPECT_NE(first.find("logits.2"), std::string::npos);
}

TEST(LogitsCommand, BadTokenFilesAreUsageErrors) {
  const std::string tokens = TemporaryFile("bad");
  for (const char* text : {"nope", "[]", "[[]]", "[[99999]]", "[[-1]]"}) {
    std::ofstream(tokens) << text;
    Program logits(Arguments("logits", {"--tokens", tokens, "--out", TemporaryFile("none")}));
    EXPECT_EQ(logits.Wait(), 2) << text << logits.error();
    EXPECT_NE(logits.error().find(tokens), std::string::npos) << logits.error();
  }
  EXPECT_FALSE(FileExists(TemporaryFile("none")));
}

}  // namespace
}  // namespace lockstep
