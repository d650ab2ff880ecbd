#include "launcher/process.h"

#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdio>
#include <utility>

#include "runtime/base/clock.h"

namespace lockstep {
namespace {

std::vector<std::string>& Arguments() {
  static std::vector<std::string> arguments;
  return arguments;
}

std::atomic<bool> g_silenced{false};
// Written by the signal handler: lock-free atomics only.
std::atomic<int> g_scopes{0};
std::atomic<int64_t> g_interrupted_ns{0};  // when; 0: not yet
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<int64_t>::is_always_lock_free);

constexpr int kInterruptedExitCode = 130;

void HandleSignal(int) {
  if (g_scopes.load() == 0) EndInterrupted();
  const int64_t now_ns = NowNs();  // clock_gettime: a handler may call it
  int64_t first_ns = 0;
  if (g_interrupted_ns.compare_exchange_strong(first_ns, now_ns)) return;
  if (now_ns - first_ns > kTwinSignalMs * 1'000'000) EndInterrupted();
}

}  // namespace

void SetProcessArguments(std::vector<std::string> arguments) { Arguments() = std::move(arguments); }
const std::vector<std::string>& ProcessArguments() { return Arguments(); }

std::string ExecutablePath() {
  char path[PATH_MAX];
  const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
  if (length > 0 && length < static_cast<ssize_t>(sizeof(path))) return std::string(path, length);
  return Arguments().empty() ? "lockstep" : Arguments().front();
}

void SilenceFinalError() { g_silenced = true; }
void TellFinalError(const Status& status) {
  if (status.ok() || g_silenced.exchange(true)) return;
  std::fflush(stdout);  // what was answered comes first
  std::fprintf(stderr, "lockstep: %s\n", MessageOf(status).c_str());
}

void EndInterrupted() {
  constexpr char kMessage[] = "lockstep: interrupted\n";
  (void)!write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
  _exit(kInterruptedExitCode);
}

void InstallSignalHandlers() {
  struct sigaction ignore = {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, nullptr);
  struct sigaction handle = {};
  handle.sa_handler = HandleSignal;
  sigaction(SIGINT, &handle, nullptr);
  sigaction(SIGTERM, &handle, nullptr);
}

bool Interrupted() { return g_interrupted_ns != 0; }

InterruptScope::InterruptScope(std::function<void()> action) {
  g_scopes.fetch_add(1);
  if (!action) return;
  // A poll every 20 ms instead of a self-pipe: no descriptor to leak into spawned ranks, and Ctrl-C
  // has no hurry.
  watcher_ = std::jthread([action = std::move(action)](const std::stop_token& stop) {
    while (!stop.stop_requested()) {
      if (Interrupted()) {
        action();
        return;
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
  });
}

InterruptScope::~InterruptScope() {
  if (watcher_.joinable()) {
    watcher_.request_stop();
    watcher_.join();
  }
  g_scopes.fetch_sub(1);
}

}  // namespace lockstep
