// Runs the lockstep binary as a user would, and looks at how it ends.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/sanitized.h"

namespace lockstep {

// The program under test; empty while ctest only lists the tests.
inline std::string BinaryPath() {
  const char* path = std::getenv("LOCKSTEP_BINARY");
  return path != nullptr ? path : "";
}

class Program {
 public:
  // Starts `lockstep arguments...` with nothing on stdin.
  explicit Program(std::vector<std::string> arguments)
      : Program(BinaryPath(), std::move(arguments)) {}
  Program(const std::string& file, std::vector<std::string> arguments) {
    start_ = std::chrono::steady_clock::now();
    int out[2], error[2];
    EXPECT_EQ(pipe2(out, O_CLOEXEC), 0);
    EXPECT_EQ(pipe2(error, O_CLOEXEC), 0);
    arguments.insert(arguments.begin(), file);
    std::vector<char*> raw;
    for (std::string& argument : arguments) raw.push_back(argument.data());
    raw.push_back(nullptr);
    pid_ = fork();
    if (pid_ == 0) {
      dup2(open("/dev/null", O_RDONLY), STDIN_FILENO);
      dup2(out[1], STDOUT_FILENO);
      dup2(error[1], STDERR_FILENO);
      execvp(raw[0], raw.data());
      _exit(127);
    }
    close(out[1]);
    close(error[1]);
    out_fd_ = out[0];
    error_fd_ = error[0];
  }
  ~Program() {
    if (!ended_) {
      kill(pid_, SIGKILL);
      waitpid(pid_, nullptr, 0);
    }
    close(out_fd_);
    close(error_fd_);
  }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  // Reads until stderr contains `text`; false after 30 s or at the end.
  bool WaitForError(const std::string& text) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (error_.find(text) == std::string::npos) {
      if (std::chrono::steady_clock::now() > end || !ReadMore(100)) break;
    }
    return error_.find(text) != std::string::npos;
  }

  // Reads to the end and returns the exit code, or -signal; -1000 if it has not ended after
  // `seconds`.
  int Wait(int seconds = kSanitized ? 300 : 60) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
    while (ReadMore(100)) {
      if (std::chrono::steady_clock::now() > end) return -1000;
    }
    int status = 0;
    waitpid(pid_, &status, 0);
    ended_ = true;
    seconds_ = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  }

  pid_t pid() const { return pid_; }
  const std::string& out() const { return out_; }
  const std::string& error() const { return error_; }
  double seconds() const { return seconds_; }
  // Lines of stderr that begin with "lockstep: ": the error as the user sees it.
  std::vector<std::string> ErrorLines() const {
    std::vector<std::string> lines;
    std::istringstream text(error_);
    for (std::string line; std::getline(text, line);) {
      if (line.rfind("lockstep: ", 0) == 0) lines.push_back(line.substr(10));
    }
    return lines;
  }
  std::vector<pid_t> Children() const {
    std::ifstream file("/proc/" + std::to_string(pid_) + "/task/" + std::to_string(pid_) +
                       "/children");
    std::vector<pid_t> children;
    for (pid_t child; file >> child;) children.push_back(child);
    return children;
  }

 private:
  // False when both pipes have ended.
  bool ReadMore(int timeout_ms) {
    pollfd entries[2] = {{out_open_ ? out_fd_ : -1, POLLIN, 0},
                         {error_open_ ? error_fd_ : -1, POLLIN, 0}};
    (void)poll(entries, 2, timeout_ms);
    char part[4096];
    for (int i = 0; i < 2; ++i) {
      if (entries[i].revents == 0) continue;
      const ssize_t count = read(entries[i].fd, part, sizeof(part));
      if (count <= 0) (i == 0 ? out_open_ : error_open_) = false;
      if (count > 0) (i == 0 ? out_ : error_).append(part, count);
    }
    return out_open_ || error_open_;
  }

  pid_t pid_ = -1;
  int out_fd_ = -1, error_fd_ = -1;
  bool out_open_ = true, error_open_ = true, ended_ = false;
  std::string out_, error_;
  double seconds_ = 0;
  std::chrono::steady_clock::time_point start_;
};

inline std::string SourceFile(const std::string& path) {
  const char* root = std::getenv("LOCKSTEP_SOURCE_DIR");
  return std::string(root != nullptr ? root : ".") + "/" + path;
}

// True if the process is gone or only waits to be reaped.
inline bool HasEnded(pid_t pid) {
  for (int i = 0; i < 100; ++i) {
    std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
    std::string line;
    if (!std::getline(stat, line) || line.find(") Z ") != std::string::npos) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return false;
}

}  // namespace lockstep
