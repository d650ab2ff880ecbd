// lockstep <command> [flags]: one binary for every rank of a cluster.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <new>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "collectives/bootstrap.h"
#include "launcher/command_line.h"
#include "launcher/commands/commands.h"
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
    {"inspect", InspectCommand},
    {"shard", ShardCommand},
    {"files", FilesCommand},
    {"verify", VerifyCommand},
    {"bench", BenchCommand},
    {"burn", BurnCommand},
    {"doctor", DoctorCommand},
    {"plan", PlanCommand},
    {"simulate", SimulateCommand},
    {"up", UpCommand},
    {"down", DownCommand},
    {"status", StatusCommand},
    {"version", VersionCommand},
};

// Contract: only rank 0 writes to stdout. Under mpirun every rank runs every command, also those
// that join nobody and would each answer.
void KeepStdoutForRankZero() {
  int rank = 0, size = 0, local_rank = 0, local_size = 0;
  if (!DetectMpirun(&rank, &size, &local_rank, &local_size) || rank == 0) return;
  const int null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
  if (null_fd < 0) return;
  (void)dup2(null_fd, STDOUT_FILENO);
  (void)close(null_fd);
}

Status Main(const std::vector<std::string>& arguments) {
  KeepStdoutForRankZero();
  SetProcessArguments(arguments);
  InstallSignalHandlers();
  LOCKSTEP_ASSIGN_OR_RETURN(
      const CommandLine line,
      ParseCommandLine(std::span(arguments).subspan(arguments.empty() ? 0 : 1)));
  std::fputs(line.text.c_str(), stdout);
  ConfigureLog(line.options, -1);
  for (const std::string& warning : line.warnings) log::Warning("%s", warning);
  for (const Command& command : kCommands) {
    if (line.command == command.name) return command.run(line.options);
  }
  if (line.command.empty()) return OkStatus();  // help or the version
  return InternalError("`lockstep %s` has no function in launcher/commands/main.cc", line.command);
}

// Threads start in constructors all over the program and memory is taken everywhere, and the
// standard library says by an exception that the system gives no more of them. (std::length_error
// is no such refusal but a size that was never checked: a bug, whose place the core dump shows.)
Status MainOrRefusal(const std::vector<std::string>& arguments) {
  try {
    return Main(arguments);
  } catch (const std::system_error& error) {
    if (error.code() != std::errc::resource_unavailable_try_again) throw;
    return UsageError(
        "cannot start a thread: %s; allow more processes (ulimit -u, LimitNPROC and TasksMax of "
        "systemd, pids of a container) or ask for fewer --threads",
        error.what());
  } catch (const std::bad_alloc&) {
    return UsageError(
        "memory ran out; allow more (ulimit -v, LimitAS of systemd), end other programs, or use "
        "more ranks, a shorter --max-model-len or fewer --max-num-seqs; if the model needs far "
        "less, its files may be damaged: fetch them again");
  }
}

}  // namespace
}  // namespace lockstep

int main(int argc, char** argv) {
  const lockstep::Status status =
      lockstep::MainOrRefusal(std::vector<std::string>(argv, argv + argc));
  lockstep::TellFinalError(status);
  return lockstep::ExitCode(status);
}
