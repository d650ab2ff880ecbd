// What belongs to the process as a whole: its command line, its signals, whether its last error was
// already told.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "runtime/base/status.h"

namespace lockstep {

// The command line as it was given, argv[0] first. Set once by main before anything else; a spawned
// rank runs it again.
void SetProcessArguments(std::vector<std::string> arguments);
const std::vector<std::string>& ProcessArguments();

// The file this process runs, or argv[0] where the system does not say.
std::string ExecutablePath();

// A rank whose error another rank prints stays silent, so that one fault is one sentence in the
// terminal.
void SilenceFinalError();
// Writes "lockstep: <message>" to stderr, unless this was done or silenced before; nothing for OK.
// To be called as soon as the error is known: mpirun kills the other ranks soon after one has died.
void TellFinalError(const Status& status);

// SIGPIPE is ignored for good. SIGINT and SIGTERM end the process at once with "interrupted" and
// exit code 130, except while an InterruptScope lives.
void InstallSignalHandlers();
// What a signal does outside of every InterruptScope: ends the process at once, exit code 130.
[[noreturn]] void EndInterrupted();
// A SIGINT or SIGTERM arrived while an InterruptScope lived.
bool Interrupted();

// How long after the first signal another one still belongs to it. Who signals a process and its
// group or its control group (GNU timeout, mpirun, systemd's KillMode) sends two within
// milliseconds; who means "at once" saw the first one do nothing, and needs longer than this.
inline constexpr int64_t kTwinSignalMs = 1'000;

// While one lives, the first SIGINT or SIGTERM only makes Interrupted() true and runs `action` (if
// any) once on a thread of its own; a signal more than kTwinSignalMs later ends the process at
// once. Scopes may nest; the process stays interrupted after.
class InterruptScope {
 public:
  explicit InterruptScope(std::function<void()> action = nullptr);
  ~InterruptScope();
  InterruptScope(const InterruptScope&) = delete;
  InterruptScope& operator=(const InterruptScope&) = delete;

 private:
  std::jthread watcher_;
};

}  // namespace lockstep
