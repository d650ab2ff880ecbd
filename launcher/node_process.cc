#include "launcher/node_process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <ctime>
#include <fstream>
#include <nlohmann/json.hpp>

#include "runtime/base/clock.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

constexpr int64_t kKillMs = 5'000;    // until SIGKILL has ended a process
constexpr int64_t kOthersMs = 1'000;  // another up or status looks at the same rank
constexpr int64_t kLookMs = 20;       // between two looks at what another process does
constexpr int64_t kHealthMs = 3'000;
constexpr size_t kLongestHead = size_t{4} << 20;  // in which a server has said that it serves
constexpr size_t kLastWords = 1'000;

std::string PathOf(const std::string& directory, int rank, const char* ending) {
  return absl::StrFormat("%s/rank-%d.%s", directory, rank, ending);
}

Status CannotUse(const std::string& path) {
  return UsageError("cannot use %s: %s", path, std::strerror(errno));
}

StatusOr<UniqueFd> OpenPidFile(const std::string& directory, int rank) {
  const std::string path = PathOf(directory, rank, "pid");
  UniqueFd file(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  if (!file.valid()) return CannotUse(path);
  return file;
}

// Whether the lock is ours now; false: another one has it. Where files cannot be locked at all,
// nobody could tell whether a rank runs, and whom a signal would reach.
StatusOr<bool> Lock(const UniqueFd& file, int how, const std::string& path) {
  while (flock(file.get(), how | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return false;
    if (errno == EINTR) continue;
    return UsageError(
        "%s cannot be locked: %s; give a directory of a local disk with --node-directory", path,
        std::strerror(errno));
  }
  return true;
}

// Whether nobody else has the file; the lock is then ours. Another one who only looks lets go soon.
StatusOr<bool> TakeLock(const UniqueFd& file, const std::string& path) {
  const Deadline deadline = Deadline::After(kOthersMs);
  while (true) {
    LOCKSTEP_ASSIGN_OR_RETURN(const bool ours, Lock(file, LOCK_EX, path));
    if (ours || deadline.Passed()) return ours;
    SleepMs(kLookMs);
  }
}

StatusOr<bool> IsRunning(const UniqueFd& file, const std::string& path) {
  LOCKSTEP_ASSIGN_OR_RETURN(const bool ours, Lock(file, LOCK_SH, path));
  if (ours) (void)flock(file.get(), LOCK_UN);
  return !ours;
}

void ReadPid(const UniqueFd& file, RankProcess* process) {
  char text[64] = {};
  if (pread(file.get(), text, sizeof(text) - 1, 0) <= 0) return;
  long long pid = 0, at = 0;
  if (std::sscanf(text, "%lld %lld", &pid, &at) != 2 || pid <= 1 || pid > INT32_MAX || at < 0)
    return;
  process->pid = pid;
  process->started_at = at;
}

Status WritePid(const UniqueFd& file, const RankProcess& process) {
  const std::string text = absl::StrFormat("%d %d\n", process.pid, process.started_at);
  if (ftruncate(file.get(), 0) != 0 ||
      pwrite(file.get(), text.data(), text.size(), 0) != static_cast<ssize_t>(text.size())) {
    return InternalError("cannot write a process id: %s", std::strerror(errno));
  }
  return OkStatus();
}

// Who holds the lock, as he wrote himself: between taking it and that a moment passes, in which the
// number of the process before may still stand there. So the same one is read twice, and both times
// the lock is held. 0: nobody does.
StatusOr<int64_t> NumberOfRunning(const UniqueFd& file, const std::string& path) {
  const Deadline deadline = Deadline::After(kOthersMs);
  int64_t last = 0;
  while (true) {
    LOCKSTEP_ASSIGN_OR_RETURN(const bool running, IsRunning(file, path));
    if (!running) return 0;
    RankProcess process;
    ReadPid(file, &process);
    if (process.pid != 0 && process.pid == last) return last;
    if (deadline.Passed())
      return InternalError("%s is locked but names no process yet; try again", path);
    last = process.pid;
    SleepMs(kLookMs);
  }
}

// Whether the lock is that process's still, and not another's that was started meanwhile.
StatusOr<bool> StillRuns(const UniqueFd& file, const std::string& path, int64_t pid) {
  LOCKSTEP_ASSIGN_OR_RETURN(const bool running, IsRunning(file, path));
  RankProcess process;
  ReadPid(file, &process);
  return running && process.pid == pid;
}

StatusOr<UniqueFd> NewLog(const std::string& directory, int rank) {
  const std::string path = PathOf(directory, rank, "log");
  (void)rename(path.c_str(), (path + ".1").c_str());
  UniqueFd log(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600));
  if (!log.valid()) return CannotUse(path);
  return log;
}

// Only calls that are safe between fork and exec. `failed` is closed by exec, or gets errno.
[[noreturn]] void BecomeRank(int lock, int log, int failed, char** arguments) {
  (void)setsid();
  (void)signal(SIGPIPE, SIG_DFL);
  (void)signal(SIGHUP, SIG_IGN);
  const int nothing = open("/dev/null", O_RDONLY);
  if (nothing >= 0) (void)dup2(nothing, STDIN_FILENO);
  (void)dup2(log, STDOUT_FILENO);
  (void)dup2(log, STDERR_FILENO);
  (void)fcntl(lock, F_SETFD, 0);
  execv(arguments[0], arguments);
  const int error = errno;
  (void)!write(failed, &error, sizeof(error));
  _exit(127);
}

std::string Head(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text(kLongestHead, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(0, file.gcount())));
  return text;
}

// The line that `lockstep serve` prints when it serves.
void FindReady(const std::string& log, RankProcess* process) {
  constexpr std::string_view kBegin = "{\"ready\":true";
  for (size_t at = log.find(kBegin); at != std::string::npos; at = log.find(kBegin, at + 1)) {
    if (at != 0 && log[at - 1] != '\n') continue;
    const nlohmann::json line =
        nlohmann::json::parse(log.substr(at, log.find('\n', at) - at), nullptr, false);
    if (!line.is_object() || !line.contains("port") || !line["port"].is_number_integer()) continue;
    const auto port = line["port"].get<int64_t>();
    if (port < 1 || port > 65'535) continue;
    process->ready = true;
    process->port = static_cast<int>(port);
  }
}

}  // namespace

StatusOr<RankProcess> StartRank(const std::string& directory, int rank,
                                const std::vector<std::string>& arguments,
                                const std::function<Status()>& prepare) {
  LOCKSTEP_ASSIGN_OR_RETURN(const UniqueFd lock, OpenPidFile(directory, rank));
  const std::string path = PathOf(directory, rank, "pid");
  RankProcess process;
  LOCKSTEP_ASSIGN_OR_RETURN(const bool ours, TakeLock(lock, path));
  if (!ours) {
    ReadPid(lock, &process);
    if (process.pid == 0) return UsageError("rank %d is being started there by another one", rank);
    return UsageError("rank %d runs already there, as process %d; `lockstep down` ends it", rank,
                      process.pid);
  }
  // What holds the lock from here on is not the process of the time before.
  if (ftruncate(lock.get(), 0) != 0) return CannotUse(path);
  if (prepare) LOCKSTEP_RETURN_IF_ERROR(prepare());
  LOCKSTEP_ASSIGN_OR_RETURN(const UniqueFd log, NewLog(directory, rank));
  int ends[2];
  if (pipe(ends) != 0) return InternalError("cannot make a pipe: %s", std::strerror(errno));
  UniqueFd failed(ends[0]), fails(ends[1]);
  for (const int end : ends) (void)fcntl(end, F_SETFD, FD_CLOEXEC);
  std::vector<std::string> words = arguments;
  std::vector<char*> raw;
  for (std::string& word : words) raw.push_back(word.data());
  raw.push_back(nullptr);
  process.started_at = static_cast<int64_t>(std::time(nullptr));
  const pid_t pid = fork();
  if (pid < 0) return InternalError("cannot start rank %d: %s", rank, std::strerror(errno));
  if (pid == 0) BecomeRank(lock.get(), log.get(), fails.get(), raw.data());
  fails.Reset();
  process.pid = pid;
  process.running = true;
  const Status written = WritePid(lock, process);
  int error = 0;
  if (read(failed.get(), &error, sizeof(error)) == sizeof(error))
    return UsageError("cannot run %s: %s", arguments[0], std::strerror(error));
  if (!written.ok()) (void)kill(pid, SIGKILL);
  LOCKSTEP_RETURN_IF_ERROR(written);
  return process;
}

StatusOr<RankProcess> FindRank(const std::string& directory, int rank) {
  LOCKSTEP_ASSIGN_OR_RETURN(const UniqueFd lock, OpenPidFile(directory, rank));
  RankProcess process;
  LOCKSTEP_ASSIGN_OR_RETURN(process.running, IsRunning(lock, PathOf(directory, rank, "pid")));
  ReadPid(lock, &process);
  if (process.running) FindReady(Head(PathOf(directory, rank, "log")), &process);
  return process;
}

StatusOr<RankEnd> EndRank(const std::string& directory, int rank, int64_t patience_ms) {
  LOCKSTEP_ASSIGN_OR_RETURN(const UniqueFd lock, OpenPidFile(directory, rank));
  const std::string path = PathOf(directory, rank, "pid");
  LOCKSTEP_ASSIGN_OR_RETURN(const int64_t pid, NumberOfRunning(lock, path));
  if (pid == 0) return RankEnd::kWasNotRunning;
  RankEnd end = RankEnd::kEnded;
  for (const int signal : {SIGTERM, SIGKILL}) {
    LOCKSTEP_ASSIGN_OR_RETURN(bool runs, StillRuns(lock, path, pid));
    if (!runs) return end;
    (void)kill(static_cast<pid_t>(pid), signal);
    end = signal == SIGTERM ? RankEnd::kEnded : RankEnd::kKilled;
    const Deadline deadline = Deadline::After(signal == SIGTERM ? patience_ms : kKillMs);
    while (!deadline.Passed()) {
      LOCKSTEP_ASSIGN_OR_RETURN(runs, StillRuns(lock, path, pid));
      if (!runs) return end;
      SleepMs(kLookMs);
    }
  }
  return InternalError("rank %d does not end even after SIGKILL", rank);
}

std::string LastWordsOfRank(const std::string& directory, int rank) {
  std::ifstream file(PathOf(directory, rank, "log"), std::ios::binary | std::ios::ate);
  if (!file) return "";
  const auto size = static_cast<int64_t>(file.tellg());
  const int64_t begin = std::max<int64_t>(0, size - static_cast<int64_t>(kLastWords));
  std::string text(static_cast<size_t>(size - begin), '\0');
  file.seekg(begin);
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  const size_t line = text.find('\n');
  if (begin > 0 && line != std::string::npos) text.erase(0, line + 1);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::string AskHealth(const std::string& host, int port) {
  const Deadline deadline = Deadline::After(kHealthMs);
  const StatusOr<UniqueFd> socket = ConnectTcp({host, port}, deadline);
  if (!socket.ok()) return MessageOf(socket.status());
  const std::string question =
      "GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
  const Status sent = SendAll(socket->get(), std::as_bytes(std::span(question)), deadline);
  char answer[12] = {};  // "HTTP/1.1 200"
  const Status received =
      sent.ok() ? ReceiveAll(socket->get(), std::as_writable_bytes(std::span(answer)), deadline)
                : sent;
  if (!received.ok()) return MessageOf(received);
  const std::string_view code = std::string_view(answer, sizeof(answer)).substr(9);
  if (code == "200") return "ready";
  return code == "503" ? "not ready" : "answers " + std::string(code);
}

}  // namespace lockstep
