// lockstep <command> [flags]: one binary for every rank of a cluster.
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "launcher/command_line.h"
#include "launcher/commands.h"
#include "launcher/process.h"
#include "runtime/base/log.h"

namespace lockstep {
namespace {

struct Command {
  const char* name;
  Status (*run)(const Options& options);
};

constexpr Command kCommands[] = {
    {"run", RunCommand},
    {"chat", ChatCommand},
    {"serve", ServeCommand},
    {"worker", WorkerCommand},
    {"logits", LogitsCommand},
    {"tokenize", TokenizeCommand},
    {"detokenize", DetokenizeCommand},
    {"render", RenderCommand},
    {"version", VersionCommand},
};

Status Main(const std::vector<std::string>& arguments) {
  SetProcessArguments(arguments);
  InstallSignalHandlers();
  LOCKSTEP_ASSIGN_OR_RETURN(
      const CommandLine line,
      ParseCommandLine(std::span(arguments).subspan(arguments.empty() ? 0 : 1)));
  std::fputs(line.text.c_str(), stdout);
  log::Configure(LogLevel(line.options), -1);
  for (const std::string& warning : line.warnings) log::Warning("%s", warning);
  for (const Command& command : kCommands) {
    if (line.command == command.name) return command.run(line.options);
  }
  return OkStatus();
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  const lockstep::Status status = lockstep::Main(std::vector<std::string>(argv, argv + argc));
  if (!status.ok() && !lockstep::FinalErrorSilenced()) {
    std::fprintf(stderr, "lockstep: %s\n", lockstep::MessageOf(status).c_str());
  }
  return lockstep::ExitCode(status);
}
