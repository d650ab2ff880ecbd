#include "launcher/remote.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

#include "absl/strings/str_split.h"
#include "launcher/node_answer.h"
#include "runtime/base/clock.h"
#include "runtime/base/os.h"
#include "transport/socket.h"

namespace lockstep {
namespace {

constexpr int kWakeMs = 20;

// A command that runs, and the ends of its pipes here.
class Running {
 public:
  Running(const NodeCommand& command, std::vector<std::string> words)
      : input_(command.input), words_(std::move(words)) {}
  ~Running() {
    if (pid_ > 0) {
      (void)kill(-pid_, SIGKILL);
      while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
      }
    }
  }
  Running(const Running&) = delete;
  Running& operator=(const Running&) = delete;

  Status Start() {
    UniqueFd theirs[3];
    for (int i = 0; i < 3; ++i) {
      int ends[2];
      if (pipe(ends) != 0) return InternalError("cannot make a pipe: %s", std::strerror(errno));
      const int own = i == 0 ? 1 : 0;
      ours_[i] = UniqueFd(ends[own]);
      theirs[i] = UniqueFd(ends[1 - own]);
      for (const int end : ends) (void)fcntl(end, F_SETFD, FD_CLOEXEC);
      (void)fcntl(ours_[i].get(), F_SETFL, O_NONBLOCK);
    }
    std::vector<char*> arguments;
    for (std::string& word : words_) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_ = fork();
    if (pid_ < 0) return InternalError("cannot start %s: %s", words_[0], std::strerror(errno));
    if (pid_ == 0) Become(theirs, arguments.data());
    if (input_.empty()) ours_[0].Reset();
    return OkStatus();
  }

  bool running() const { return pid_ > 0; }
  void AddTo(std::vector<pollfd>* entries) const {
    for (int i = 0; i < 3; ++i) {
      if (ours_[i].valid())
        entries->push_back({ours_[i].get(), static_cast<short>(i == 0 ? POLLOUT : POLLIN), 0});
    }
  }
  // Moves what can be moved now, and notices the end. What still holds the pipes then is not
  // waited for.
  void Step() {
    Feed();
    Drain();
    if (waitpid(pid_, &wait_status_, WNOHANG) != pid_) return;
    pid_ = -1;
    Drain();
  }

  StatusOr<NodeAnswer> Answer(int64_t timeout_ms) {
    if (running()) return InternalError("no answer within %d s", timeout_ms / 1000);
    if (!WIFEXITED(wait_status_))
      return InternalError("%s was killed by signal %d", words_[0], WTERMSIG(wait_status_));
    answer_.exit_code = WEXITSTATUS(wait_status_);
    return answer_;
  }

 private:
  // Only calls that are safe between fork and exec.
  [[noreturn]] static void Become(const UniqueFd* pipes, char** arguments) {
    os::DieWithParent();
    (void)setpgid(0, 0);  // so that whatever it starts can be ended with it
    (void)signal(SIGPIPE, SIG_DFL);
    for (int i = 0; i < 3; ++i) (void)dup2(pipes[i].get(), i);
    execvp(arguments[0], arguments);
    constexpr char kMessage[] = "cannot be run: is it installed?\n";
    (void)!write(STDERR_FILENO, arguments[0], std::strlen(arguments[0]));
    (void)!write(STDERR_FILENO, " ", 1);
    (void)!write(STDERR_FILENO, kMessage, sizeof(kMessage) - 1);
    _exit(255);
  }

  void Feed() {
    while (ours_[0].valid()) {
      const ssize_t count = write(ours_[0].get(), input_.data() + fed_, input_.size() - fed_);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0 && errno == EAGAIN) return;
      if (count > 0) fed_ += static_cast<size_t>(count);
      if (count <= 0 || fed_ == input_.size()) ours_[0].Reset();
    }
  }

  void Drain() {
    for (int i = 1; i < 3; ++i) {
      std::string& text = i == 1 ? answer_.out : answer_.error;
      char part[4096];
      while (ours_[i].valid()) {
        const ssize_t count = read(ours_[i].get(), part, sizeof(part));
        if (count < 0 && errno == EINTR) continue;
        if (count < 0 && errno == EAGAIN) break;
        if (count <= 0) ours_[i].Reset();
        const size_t room = kLongestNodeAnswer - text.size();
        if (count > 0) text.append(part, std::min(static_cast<size_t>(count), room));
      }
    }
  }

  const std::string input_;
  std::vector<std::string> words_;
  UniqueFd ours_[3];
  size_t fed_ = 0;
  pid_t pid_ = -1;
  int wait_status_ = 0;
  NodeAnswer answer_;
};

}  // namespace

std::string ShellWord(std::string_view text) {
  std::string word = "'";
  for (const char c : text) {
    if (c == '\'') {
      word += "'\\''";
    } else {
      word += c;
    }
  }
  return word + "'";
}

StatusOr<std::vector<std::string>> CommandLineOf(const std::string& ssh,
                                                 const NodeCommand& command) {
  if (command.host.empty()) return std::vector<std::string>{"/bin/sh", "-c", command.script};
  const auto letter = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
  };
  const auto fits = [&](char c) { return letter(c) || std::strchr(".:_-%", c) != nullptr; };
  const std::string& host = command.host;
  if ((!letter(host[0]) && host[0] != ':') || !std::all_of(host.begin(), host.end(), fits)) {
    return UsageError(
        "'%s' is no host that ssh can be given: letters, digits and . : _ - %% alone, the first "
        "one a letter or a digit",
        host);
  }
  std::vector<std::string> words = absl::StrSplit(ssh, ' ', absl::SkipEmpty());
  if (words.empty()) return UsageError("--ssh names no program");
  for (const std::string& setting :
       {std::string("BatchMode=yes"), absl::StrFormat("ConnectTimeout=%d", kSshConnectSeconds)})
    words.insert(words.end(), {"-o", setting});
  // ssh hands its words to whatever shell the user has there.
  words.insert(words.end(), {host, "exec /bin/sh -c " + ShellWord(command.script)});
  return words;
}

std::vector<StatusOr<NodeAnswer>> RunOnNodes(const std::string& ssh,
                                             std::span<const NodeCommand> commands,
                                             int64_t timeout_ms) {
  std::vector<std::unique_ptr<Running>> all;
  std::vector<StatusOr<NodeAnswer>> answers;
  for (const NodeCommand& command : commands) {
    StatusOr<std::vector<std::string>> words = CommandLineOf(ssh, command);
    Status started = words.status();
    if (started.ok()) {
      all.push_back(std::make_unique<Running>(command, *std::move(words)));
      started = all.back()->Start();
      if (!started.ok()) all.back().reset();
    } else {
      all.push_back(nullptr);
    }
    answers.emplace_back(started.ok() ? InternalError("not yet") : started);
  }
  const Deadline deadline = Deadline::After(timeout_ms);
  while (true) {
    std::vector<pollfd> entries;
    bool running = false;
    for (const auto& one : all) {
      if (one == nullptr || !one->running()) continue;
      one->Step();
      if (!one->running()) continue;
      running = true;
      one->AddTo(&entries);
    }
    if (!running || deadline.Passed()) break;
    (void)poll(entries.data(), entries.size(), kWakeMs);
  }
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i] != nullptr) answers[i] = all[i]->Answer(timeout_ms);
  }
  return answers;
}

StatusOr<std::string> OutputOf(const StatusOr<NodeAnswer>& answer, const AskedNode& node) {
  if (!answer.ok()) return PeerLostError("%s: %s", node.name, MessageOf(answer.status()));
  std::string said = answer->error;
  while (!said.empty() && said.back() == '\n') said.pop_back();
  said = Printable(said, true);
  if (answer->exit_code == 255 && !node.host.empty()) {
    return PeerLostError(
        "%s cannot be reached: %s; `%s -o BatchMode=yes %s true` must end without a question",
        node.name, said, node.ssh, node.host);
  }
  if (answer->exit_code == 127 || answer->exit_code == 126) {
    return UsageError(
        "%s: cannot run %s there (%s); copy lockstep to that place or say where it is with "
        "--node-program",
        node.name, node.program, said);
  }
  if (answer->exit_code != 0) return UsageError("%s: %s", node.name, said);
  return answer->out;
}

Status CheckWholePath(const std::string& where, const char* key, const std::string& path) {
  if (path.empty() || path.front() == '/') return OkStatus();
  return UsageError(
      "%s: %s is '%s', which other nodes would look for in another directory; give the whole path",
      where, key, path);
}

}  // namespace lockstep
