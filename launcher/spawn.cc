#include "launcher/spawn.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "launcher/process.h"
#include "runtime/base/bytes.h"
#include "runtime/base/clock.h"
#include "runtime/base/os.h"

namespace lockstep {
namespace {

// Names the pipe's descriptor; the number is no secret.
constexpr char kTicketVariable[] = "LOCKSTEP_SPAWN_FD";
constexpr uint64_t kTicketMagic = 0x6c6f636b73746570;  // "lockstep"
// What a pipe holds without a reader (PIPE_BUF is the portable promise, Linux holds 64 KiB).
constexpr size_t kLargestTicket = 4096;
constexpr int64_t kWatchEveryMs = 20;
// A refused rank ends a moment before rank 0 has its own, better error.
constexpr int64_t kGraceMs = 1000;

std::string ErrnoText() { return std::strerror(errno); }

std::string EncodeTicket(const SpawnTicket& ticket) {
  ByteWriter writer;
  writer.Put(kTicketMagic);
  writer.Put(static_cast<int64_t>(getpid()));
  writer.Put(static_cast<int32_t>(ticket.rank));
  writer.Put(static_cast<int32_t>(ticket.size));
  writer.PutString(ticket.rendezvous);
  writer.PutString(ticket.secret);
  return std::string(reinterpret_cast<const char*>(writer.bytes().data()), writer.bytes().size());
}

StatusOr<SpawnTicket> DecodeTicket(const std::string& bytes) {
  ByteReader reader(std::as_bytes(std::span(bytes)));
  const auto magic = reader.Get<uint64_t>();
  const auto parent = reader.Get<int64_t>();
  SpawnTicket ticket;
  ticket.rank = reader.Get<int32_t>();
  ticket.size = reader.Get<int32_t>();
  ticket.rendezvous = reader.GetString();
  ticket.secret = reader.GetString();
  const bool sound = reader.Finish("spawn ticket").ok() && magic == kTicketMagic &&
                     ticket.rank > 0 && ticket.rank < ticket.size;
  if (!sound) {
    return UsageError("%s is set, but no lockstep process set it; unset it", kTicketVariable);
  }
  if (parent != getppid()) {
    return PeerLostError("rank 0 (pid %d) ended before this rank had started", parent);
  }
  return ticket;
}

// Everything between fork and exec: only calls that are safe when other threads held locks at the
// fork.
[[noreturn]] void BecomeRank(int ticket_fd, const char* path, char** arguments,
                             char** environment) {
  os::DieWithParent();
  setpgid(0, 0);
  const int null_fd = open("/dev/null", O_RDONLY);
  if (null_fd >= 0) dup2(null_fd, STDIN_FILENO);
  dup2(STDERR_FILENO, STDOUT_FILENO);
  fcntl(ticket_fd, F_SETFD, 0);
  execve(path, arguments, environment);
  // The file may have been replaced since this process began.
  execve("/proc/self/exe", arguments, environment);
  _exit(127);
}

StatusOr<std::optional<SpawnTicket>> ReadSpawnTicket() {
  const char* variable = std::getenv(kTicketVariable);
  if (variable == nullptr) return std::optional<SpawnTicket>();
  const int fd = std::atoi(variable);
  unsetenv(kTicketVariable);
  struct stat about = {};
  std::string bytes;
  if (fd > STDERR_FILENO && fstat(fd, &about) == 0 && S_ISFIFO(about.st_mode)) {
    std::array<char, kLargestTicket> part;
    while (bytes.size() <= kLargestTicket) {
      const ssize_t count = read(fd, part.data(), part.size());
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) break;
      bytes.append(part.data(), count);
    }
    close(fd);
  }
  LOCKSTEP_ASSIGN_OR_RETURN(SpawnTicket ticket, DecodeTicket(bytes));
  return std::optional<SpawnTicket>(std::move(ticket));
}

}  // namespace

StatusOr<std::optional<SpawnTicket>> TakeSpawnTicket() {
  // The pipe gives the ticket once, but a command may look around more than once.
  static const StatusOr<std::optional<SpawnTicket>> ticket = ReadSpawnTicket();
  return ticket;
}

StatusOr<std::unique_ptr<SpawnedRanks>> SpawnedRanks::Start(int size, const std::string& rendezvous,
                                                            const std::string& secret) {
  LOCKSTEP_ASSIGN_OR_RETURN(const std::optional<SpawnTicket> own, TakeSpawnTicket());
  if (own.has_value()) {
    return InternalError("rank %d was spawned and must not spawn ranks itself", own->rank);
  }
  std::unique_ptr<SpawnedRanks> ranks(new SpawnedRanks());
  ranks->cpus_ = os::AllowedCpus();
  for (int rank = 1; rank < size; ++rank) {
    const SpawnTicket ticket = {
        .rank = rank, .size = size, .rendezvous = rendezvous, .secret = secret};
    Child child = {.rank = rank, .ticket = EncodeTicket(ticket)};
    LOCKSTEP_RETURN_IF_ERROR(StartOne(&child));
    ranks->children_.push_back(std::move(child));
  }
  ranks->StartWatching();
  return ranks;
}

void SpawnedRanks::StartWatching() {
  joined_ = false;
  watcher_ = std::jthread([this](const std::stop_token& stop) { Watch(stop); });
}

Status SpawnedRanks::Restart(int lost, int64_t timeout_ms) {
  for (Child& child : children_) {
    if (child.rank != lost) continue;
    if (!child.ended) kill(child.pid, SIGKILL);
    const Deadline deadline = Deadline::After(timeout_ms);
    for (Reap(); !child.ended; Reap()) {
      if (deadline.Passed())
        return InternalError("the process %d of rank %d does not end", child.pid, lost);
      SleepMs(2);
    }
  }
  // A new process begins with the CPUs of this thread.
  const std::vector<int> own = os::AllowedCpus();
  LOCKSTEP_RETURN_IF_ERROR(os::SetAffinity(cpus_));
  Status started = OkStatus();
  for (Child& child : children_) {
    if (child.ended && started.ok()) started = StartOne(&child);
  }
  LOCKSTEP_RETURN_IF_ERROR(os::SetAffinity(own));
  LOCKSTEP_RETURN_IF_ERROR(started);
  StartWatching();
  return OkStatus();
}

Status SpawnedRanks::StartOne(Child* child) {
  const std::string& ticket = child->ticket;
  if (ticket.size() > kLargestTicket) return UsageError("the secret or the rendezvous is too long");
  int ends[2];
  if (pipe(ends) != 0) return InternalError("cannot make a pipe: %s", ErrnoText());
  for (const int end : ends) fcntl(end, F_SETFD, FD_CLOEXEC);
  const bool written =
      write(ends[1], ticket.data(), ticket.size()) == static_cast<ssize_t>(ticket.size());
  close(ends[1]);

  std::vector<std::string> texts = ProcessArguments();
  std::vector<char*> arguments;
  for (std::string& text : texts) arguments.push_back(text.data());
  arguments.push_back(nullptr);
  std::string variable = std::string(kTicketVariable) + "=" + std::to_string(ends[0]);
  std::vector<char*> environment = {variable.data()};
  for (char** entry = environ; *entry != nullptr; ++entry) environment.push_back(*entry);
  environment.push_back(nullptr);
  const std::string path = ExecutablePath();

  const pid_t pid = written ? fork() : -1;
  if (pid == 0) BecomeRank(ends[0], path.c_str(), arguments.data(), environment.data());
  const std::string why = ErrnoText();
  close(ends[0]);
  if (pid < 0) return InternalError("cannot start rank %d: %s", child->rank, why);
  child->pid = pid;
  child->ended = false;
  return OkStatus();
}

int SpawnedRanks::Reap() {
  const std::lock_guard lock(mutex_);
  int running = 0;
  for (Child& child : children_) {
    if (!child.ended) child.ended = waitpid(child.pid, &child.wait_status, WNOHANG) == child.pid;
    if (!child.ended) ++running;
  }
  return running;
}

void SpawnedRanks::Watch(const std::stop_token& stop) {
  int64_t first_end_ns = 0;
  while (!stop.stop_requested() && !joined_) {
    if (Reap() < static_cast<int>(children_.size())) {
      if (first_end_ns == 0) first_end_ns = NowNs();
      if (NowNs() - first_end_ns > kGraceMs * 1'000'000) break;
    }
    SleepMs(kWatchEveryMs);
  }
  if (stop.stop_requested() || joined_) return;
  for (const Child& child : children_) {
    if (child.ended) EndProcess(child);
  }
}

void SpawnedRanks::EndProcess(const Child& child) {
  int code = 1;
  std::string how;
  if (WIFEXITED(child.wait_status)) {
    const int exit_code = WEXITSTATUS(child.wait_status);
    how = absl::StrFormat("ended with exit code %d", exit_code);
    // 127: exec failed. Our own codes pass on; a rank that ended well before joining is a bug of
    // ours.
    if (exit_code >= 1 && exit_code <= 4) code = exit_code;
  } else {
    how = absl::StrFormat("was killed by signal %d", WTERMSIG(child.wait_status));
    code = 4;
  }
  std::fprintf(stderr, "lockstep: rank %d (pid %d) %s before all ranks had joined\n", child.rank,
               static_cast<int>(child.pid), how.c_str());
  for (const Child& other : children_) {
    if (!other.ended) kill(other.pid, SIGKILL);
  }
  std::fflush(nullptr);
  _exit(code);
}

void SpawnedRanks::Joined() {
  joined_ = true;
  if (watcher_.joinable()) watcher_.join();
}

void SpawnedRanks::Finish(int64_t timeout_ms) {
  Joined();
  const Deadline deadline = Deadline::After(timeout_ms);
  while (Reap() > 0 && !deadline.Passed()) SleepMs(2);
  for (Child& child : children_) {
    if (child.ended) continue;
    kill(child.pid, SIGKILL);
    while (waitpid(child.pid, &child.wait_status, 0) < 0 && errno == EINTR) {
    }
    child.ended = true;
  }
}

SpawnedRanks::~SpawnedRanks() { Finish(0); }

}  // namespace lockstep
