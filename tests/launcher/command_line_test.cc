#include "launcher/command_line.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>

namespace lockstep {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

StatusOr<CommandLine> Parse(std::vector<std::string> arguments) {
  return ParseCommandLine(arguments);
}

std::string ErrorOf(std::vector<std::string> arguments) {
  const StatusOr<CommandLine> line = Parse(std::move(arguments));
  if (line.ok()) return "";
  EXPECT_EQ(ExitCode(line.status()), 2);
  return MessageOf(line.status());
}

std::string WriteTemporary(const std::string& text) {
  const std::string path = testing::TempDir() + "/command_line_test.yaml";
  std::ofstream(path) << text;
  return path;
}

TEST(CommandLine, FlagsOfEveryKindReachTheOptions) {
  const StatusOr<CommandLine> line =
      Parse({"run", "--model", "m", "--ranks=3", "--shares", "3,2,1", "--raw", "--json", "--stop",
             "a", "--stop", "b", "--temperature", "0.5", "--seed", "7", "--presence-penalty",
             "-1.5", "hello"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->command, "run");
  EXPECT_EQ(line->options.model, "m");
  EXPECT_EQ(line->options.ranks, 3);
  EXPECT_THAT(line->options.shares, ElementsAre(3, 2, 1));
  EXPECT_TRUE(line->options.raw);
  EXPECT_TRUE(line->options.json);
  EXPECT_THAT(line->options.stop, ElementsAre("a", "b"));
  EXPECT_EQ(line->options.temperature, 0.5);
  EXPECT_EQ(line->options.seed, 7);
  EXPECT_EQ(line->options.presence_penalty, -1.5);
  EXPECT_THAT(line->options.prompt, ElementsAre("hello"));
  EXPECT_THAT(line->warnings, IsEmpty());
}

TEST(CommandLine, NothingGivenLeavesTheDefaults) {
  const StatusOr<CommandLine> line = Parse({"serve"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options.grpc_port, Options().grpc_port);
  EXPECT_FALSE(line->options.temperature.has_value());
  EXPECT_FALSE(line->options.raw);
}

TEST(CommandLine, AliasesOfOtherServersWork) {
  const StatusOr<CommandLine> line = Parse({"run", "-m", "dir", "-tp", "2", "-c", "4096", "-np",
                                            "3", "-n", "5", "--temp", "0", "-p", "hi"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options.model, "dir");
  EXPECT_EQ(line->options.ranks, 2);
  EXPECT_EQ(line->options.max_model_len, 4096);
  EXPECT_EQ(line->options.max_num_seqs, 3);
  EXPECT_EQ(line->options.max_tokens, 5);
  EXPECT_EQ(line->options.temperature, 0);
  EXPECT_THAT(line->options.prompt, ElementsAre("hi"));
  const StatusOr<CommandLine> server =
      Parse({"serve", "--tensor-parallel-size", "2", "--parallel", "4", "-t", "3", "--ctx-size",
             "512", "-a", "glm", "--enable-prefix-caching"});
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_EQ(server->options.ranks, 2);
  EXPECT_EQ(server->options.max_num_seqs, 4);
  EXPECT_EQ(server->options.threads, 3);
  EXPECT_EQ(server->options.max_model_len, 512);
  EXPECT_EQ(server->options.served_model_name, "glm");
  EXPECT_TRUE(server->options.prefix_cache);
}

TEST(CommandLine, FlagsOfOtherServersWithoutATwinAreRefusedWithWhatServesTheirPurpose) {
  EXPECT_THAT(ErrorOf({"serve", "--api-key", "sk-secret"}),
              AllOf(HasSubstr("--api-key-file"), testing::Not(HasSubstr("sk-secret"))));
  EXPECT_THAT(ErrorOf({"serve", "--api-key=sk-secret"}),
              AllOf(HasSubstr("--api-key-file"), testing::Not(HasSubstr("sk-secret"))));
  EXPECT_THAT(ErrorOf({"serve", "--max-num-batched-tokens", "512"}), HasSubstr("--prefill-chunk"));
  EXPECT_THAT(ErrorOf({"serve", "-ctk", "q8_0"}), HasSubstr("--kv-cache-dtype"));
}

TEST(CommandLine, PromptsAreTakenAsTheyAre) {
  for (const std::string prompt :
       {"[1,2]", "a b  c", "", "-5 degrees", "x\ny", "{\"a\":1}", "--x y"}) {
    const StatusOr<CommandLine> line = Parse({"run", "--prompt", prompt});
    ASSERT_TRUE(line.ok()) << prompt << ": " << line.status();
    EXPECT_THAT(line->options.prompt, ElementsAre(prompt));
  }
  for (const std::string prompt : {"[1,2]", "a b  c", "x\ny", "-5 degrees"}) {
    const StatusOr<CommandLine> line = Parse({"run", "--raw", "--", prompt});
    ASSERT_TRUE(line.ok()) << prompt << ": " << line.status();
    EXPECT_THAT(line->options.prompt, ElementsAre(prompt));
  }
}

TEST(CommandLine, OfASingleValueGivenTwiceTheLastOneCounts) {
  const StatusOr<CommandLine> line = Parse({"run", "--model", "a", "--model", "b"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options.model, "b");
}

TEST(CommandLine, ServeTakesTheModelAsItsArgument) {
  const StatusOr<CommandLine> line = Parse({"serve", "models/tiny", "--grpc-port", "0"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options.model, "models/tiny");
}

TEST(CommandLine, UnknownCommandsAndFlagsAreRefusedWithTheNearestOne) {
  EXPECT_THAT(ErrorOf({"srve"}), AllOf(HasSubstr("'srve'"), HasSubstr("did you mean 'serve'?")));
  EXPECT_THAT(ErrorOf({"quantum"}),
              AllOf(HasSubstr("'quantum'"), testing::Not(HasSubstr("did you mean"))));
  EXPECT_THAT(ErrorOf({"run", "--modell", "x"}), HasSubstr("did you mean '--model'?"));
  EXPECT_THAT(ErrorOf({"run", "--max-tokns=3"}), HasSubstr("did you mean '--max-tokens'?"));
  EXPECT_THAT(ErrorOf({}), HasSubstr("lockstep help"));
}

TEST(CommandLine, WrongValuesAreRefusedWithTheAllowedOnes) {
  EXPECT_THAT(ErrorOf({"run", "--kernels", "gpu"}),
              AllOf(HasSubstr("--kernels"), HasSubstr("auto, ref, cpu")));
  EXPECT_THAT(ErrorOf({"run", "--kernels", "cpu/none"}), HasSubstr("cpu/i8mm"));
  EXPECT_EQ(ErrorOf({"run", "--kernels", "cpu/i8mm", "hello"}), "");
  EXPECT_THAT(ErrorOf({"run", "--ranks", "two"}), AllOf(HasSubstr("--ranks"), HasSubstr("'two'")));
  EXPECT_THAT(ErrorOf({"run", "--ranks", "0"}), HasSubstr("outside"));
  EXPECT_THAT(ErrorOf({"run", "--ranks", "99999999999999999999"}), HasSubstr("--ranks"));
  EXPECT_THAT(ErrorOf({"run", "--top-p", "nan"}), HasSubstr("--top-p"));
  EXPECT_THAT(ErrorOf({"run", "--shares", "1,,2"}), HasSubstr("--shares"));
  EXPECT_THAT(ErrorOf({"run", "--model"}), HasSubstr("--model"));
}

TEST(CommandLine, ASecondPromptOrTwoSpellingsOfOneAreRefused) {
  EXPECT_THAT(ErrorOf({"run", "two", "words"}), AllOf(HasSubstr("'words'"), HasSubstr("quotes")));
  EXPECT_THAT(ErrorOf({"run", "--prompt", "a", "b"}), HasSubstr("--prompt"));
}

TEST(CommandLine, FlagsTakeTrueAndFalseAndNothingElse) {
  for (const std::string value : {"maybe", "2x", "1", "99999999999999999999"}) {
    EXPECT_THAT(ErrorOf({"serve", "m", "--recover=" + value}),
                AllOf(HasSubstr("--recover"), HasSubstr(value), HasSubstr("true, false")));
  }
  EXPECT_TRUE(Parse({"serve", "m", "--recover"})->options.recover);
  EXPECT_TRUE(Parse({"serve", "m", "--recover=true"})->options.recover);
  EXPECT_FALSE(Parse({"serve", "m", "--recover", "--recover=false"})->options.recover);
}

TEST(CommandLine, FlagsOfOtherCommandsWorkButWarn) {
  const StatusOr<CommandLine> line = Parse({"tokenize", "--model", "m", "--grpc-port", "1"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_THAT(line->warnings, ElementsAre(AllOf(HasSubstr("--grpc-port"), HasSubstr("tokenize"))));
}

TEST(CommandLine, WhatACommandDoesNotUseIsNoFlagOfIt) {
  const auto unused = [](std::vector<std::string> arguments) {
    const StatusOr<CommandLine> line = Parse(std::move(arguments));
    EXPECT_TRUE(line.ok()) << line.status();
    return line.ok() ? line->warnings : std::vector<std::string>();
  };
  EXPECT_THAT(
      unused(
          {"shard",       "m",     "--ranks",  "2",         "--shares", "2,1",           "--rank",
           "1",           "--out", "o",        "--from",    "u",        "--secret-file", "s",
           "--quantize",  "q8_0",  "--record", "--threads", "1",        "--kernels",     "ref",
           "--log-level", "info"}),
      IsEmpty());
  EXPECT_EQ(unused({"shard", "m", "--exact", "--kv-cache-dtype", "q8", "--chat-template", "auto",
                    "--collective", "tcp", "--interface", "i", "--rendezvous", "h:1",
                    "--verify-exchanges", "--peer-timeout-ms", "9000", "--json"})
                .size(),
            9u);
  EXPECT_THAT(unused({"inspect", "m", "--json", "--log-level", "info"}), IsEmpty());
  EXPECT_THAT(unused({"files", "m", "--host", "h", "--port", "1", "--secret-file", "s"}),
              IsEmpty());
  for (const std::string command : {"inspect", "files", "tokenize"}) {
    EXPECT_EQ(unused({command, "m", "--kernels", "ref", "--exact", "--threads", "1"}).size(), 3u);
    EXPECT_THAT(Parse({command, "--help"})->text, testing::Not(HasSubstr("--threads")));
  }
  EXPECT_THAT(unused({"verify", "m", "--exact", "--ranks", "2", "--collective", "tcp"}), IsEmpty());
  EXPECT_THAT(unused({"doctor", "--ranks", "2", "--interface", "i", "--json"}), IsEmpty());
}

TEST(CommandLine, HelpNamesEveryCommandAndEveryFlagWithItsMeaning) {
  const StatusOr<CommandLine> overview = Parse({"help"});
  ASSERT_TRUE(overview.ok());
  EXPECT_TRUE(overview->command.empty());
  EXPECT_THAT(CommandNames(), testing::Contains("doctor"));
  for (const std::string& name : CommandNames()) {
    EXPECT_THAT(overview->text, HasSubstr("\n  " + name + " "));
    for (const std::vector<std::string>& form :
         {std::vector<std::string>{"help", name}, std::vector<std::string>{name, "--help"}}) {
      const StatusOr<CommandLine> help = Parse(form);
      ASSERT_TRUE(help.ok()) << help.status();
      EXPECT_TRUE(help->command.empty());
      EXPECT_THAT(help->text, HasSubstr("--log-level"));
    }
  }
  const StatusOr<CommandLine> run = Parse({"run", "--help"});
  EXPECT_THAT(run->text, AllOf(HasSubstr("--temperature"), HasSubstr("0 is greedy"),
                               HasSubstr("tcp, shm, rdma, mpi")));
  EXPECT_THAT(run->text, testing::Not(HasSubstr("--grpc-port")));
}

TEST(CommandLine, VersionIsPrintedByFlagToo) {
  EXPECT_THAT(Parse({"--version"})->text, HasSubstr("lockstep "));
}

TEST(CommandLine, EveryOptionStandsInAGroupOfTheHelp) {
  for (const OptionSpec& spec : OptionTable())
    EXPECT_FALSE(OptionGroup(spec.name).empty()) << spec.name;
}

TEST(CommandLine, TheCommandLineStandsAboveTheFile) {
  const std::string path =
      WriteTemporary("model: from-file\nranks: 4\nraw: true\nstop: [a, b]\ntop-k: 5\n");
  const StatusOr<CommandLine> line =
      Parse({"run", "--ranks", "2", "--config", path, "--raw=false", "--stop", "c", "hi"});
  ASSERT_TRUE(line.ok()) << line.status();
  EXPECT_EQ(line->options.model, "from-file");
  EXPECT_EQ(line->options.ranks, 2);
  EXPECT_FALSE(line->options.raw);
  EXPECT_THAT(line->options.stop, ElementsAre("c"));
  EXPECT_EQ(line->options.top_k, 5);
}

TEST(CommandLine, AMissingConfigFileIsAUsageError) {
  EXPECT_THAT(ErrorOf({"run", "--config", "/nowhere/x.yaml"}), HasSubstr("/nowhere/x.yaml"));
}

}  // namespace
}  // namespace lockstep
